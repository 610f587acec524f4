//! What PostgreSQL settings mean: types, units, limits.

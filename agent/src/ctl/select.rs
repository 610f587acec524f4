//! Which members a command acts on (`cli.md` 7.3).

use super::args::Role;
use super::console::confirm;
use super::console::prompt;
use super::error::{CtlResult, says};
use super::sayn;
use super::session::Cluster;
use super::show;
use proto::dcs::MemberRecord;
use proto::ids::MemberName;

/// A member and what it says of itself.
pub type Chosen<'c> = (&'c MemberName, &'c MemberRecord);

/// What is going to happen to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Restart.
    Restart,
    /// Reload.
    Reload,
    /// Reinitialise: replicas only, and without names one is asked for.
    Reinitialize,
    /// Forget scheduled restarts.
    Flush,
}

impl Purpose {
    /// The verb.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Reload => "reload",
            Self::Reinitialize => "reinitialize",
            Self::Flush => "flush",
        }
    }
}

/// Chooses the members after showing the table. Asks nothing but, for [`Purpose::Reinitialize`], a name.
pub fn choose<'c>(
    cluster: &'c Cluster,
    named: &[String],
    role: Role,
    force: bool,
    purpose: Purpose,
) -> CtlResult<Vec<Chosen<'c>>> {
    let candidates = cluster.with_role(role);
    if named.is_empty() && candidates.is_empty() {
        return says(format!(
            "{} cluster doesn't have any members",
            cluster.scope
        ));
    }
    sayn!("{}", show::table(cluster));
    let is = |wanted: &str, name: &MemberName| name.as_str() == wanted;
    if !named.is_empty() {
        let mut chosen = candidates;
        chosen.retain(|(name, _)| named.iter().any(|wanted| is(wanted, name)));
        if chosen.is_empty() {
            return says(match purpose {
                Purpose::Reinitialize => String::from("No replica among provided members"),
                _ => format!("No '{}' among provided members", role.name()),
            });
        }
        return Ok(chosen);
    }
    if purpose != Purpose::Reinitialize {
        return Ok(candidates);
    }
    if force {
        return Ok(Vec::new());
    }
    let name = prompt(
        &format!(
            "Which member do you want to reinitialize [{}]?",
            names(&candidates)
        ),
        Some(""),
    )?;
    let mut chosen = candidates;
    chosen.retain(|(candidate, _)| is(&name, candidate));
    if chosen.is_empty() {
        return says(format!("{name} is not a member of cluster"));
    }
    Ok(chosen)
}

/// Asks whether it shall really happen.
pub fn confirmed(chosen: &[Chosen<'_>], force: bool, purpose: Purpose) -> CtlResult<()> {
    let (verb, names) = (purpose.verb(), names(chosen));
    if force || confirm(&format!("Are you sure you want to {verb} members {names}?"))? {
        return Ok(());
    }
    says(format!("Aborted {verb}"))
}

/// Names, for people.
pub fn names(members: &[Chosen<'_>]) -> String {
    let names = members.iter().map(|(name, _)| name.as_str());
    names.collect::<Vec<_>>().join(", ")
}

//! The fence promise of a standby (S19, `safety.md` 4.3): on disk first, then the stream is cut, then
//! the frozen position is read.
//!
//! Nothing here is undone when a later step fails: a promise that was stored holds until it is
//! withdrawn, and the member streams from nobody meanwhile ([`Shared::conf_state`]).

use super::connect;
use super::pgdata;
use super::receiver;
use super::shared::{POLL, Shared, chain};
use super::start;
use super::walsender;
use proto::core::job::Upstream;
use proto::core::observation::Led;
use proto::dcs::{FencePromise, RECORD_VERSION};
use proto::ids::Epoch;
use proto::wal::{Lsn, Timeline};
use std::time::Duration;
use tokio::time::Instant;
use tokio_postgres::Client;

/// A promise that takes longer has failed; the old primary's lease is about to run out anyway.
const LIMIT: Duration = Duration::from_secs(10);

/// A WAL receiver that is still there this long after the reload is ended. The startup process ends it
/// by itself only when it needs more WAL, which a standby that replays a backlog does not.
const LINGER: Duration = Duration::from_millis(200);

/// Looks in a row that must find no WAL receiver: one that is starting shows up between two of them.
const ABSENT_LOOKS: u32 = 3;

/// Stores the promise and cuts the stream; returns what to write to `/fence/<me>`.
pub(super) async fn give(shared: &Shared, epoch: Epoch) -> Result<FencePromise, String> {
    let work = async {
        let wal_epoch = store(shared, epoch).await?;
        let client = connect::superuser(&shared.ctx)
            .await
            .map_err(|err| chain(&err))?;
        if !super::promote::in_recovery(&client)
            .await
            .map_err(|err| chain(&err))?
        {
            return Err(String::from("a primary makes no promise"));
        }
        cut(shared, &client).await?;
        let (timeline, lsn) = position(shared, &client).await?;
        if receiver::find(&client).await?.is_some() {
            return Err(String::from("a WAL receiver came back"));
        }
        Ok(FencePromise {
            v: RECORD_VERSION,
            epoch,
            wal_epoch,
            timeline,
            lsn,
        })
    };
    let late = || format!("the promise took longer than {LIMIT:?}");
    tokio::time::timeout(LIMIT, work)
        .await
        .unwrap_or_else(|_| Err(late()))
}

/// Forgets the promise on disk, if it is not one of a later epoch.
pub(super) async fn withdraw(shared: &Shared, epoch: Epoch) -> Result<(), String> {
    change(shared, move |state, torn| {
        if torn || state.promised.is_some_and(|promised| promised <= epoch) {
            state.promised = None;
        }
    })
    .await
    .map(drop)
}

/// Keeps the epoch of the received WAL; it never falls.
pub(super) async fn note_wal_epoch(shared: &Shared, epoch: Epoch) -> Result<(), String> {
    change(shared, move |state, _| {
        state.wal_epoch = state.wal_epoch.max(epoch)
    })
    .await
    .map(drop)
}

/// Keeps the tenure in which we lead; our WAL is of its epoch.
pub(super) async fn note_led(shared: &Shared, led: Led) -> Result<(), String> {
    change(shared, move |state, _| {
        state.wal_epoch = state.wal_epoch.max(led.epoch);
        state.led = Some(led);
    })
    .await
    .map(drop)
}

/// Stores the promise; returns the epoch of our WAL.
async fn store(shared: &Shared, epoch: Epoch) -> Result<Epoch, String> {
    let state = change(shared, move |state, torn| {
        let earlier = state.promised.filter(|_| !torn);
        state.promised = Some(earlier.map_or(epoch, |earlier| earlier.max(epoch)));
    })
    .await?;
    Ok(state.wal_epoch)
}

/// Reads, changes and stores the durable state. The second argument of `edit` says that what was there
/// could not be read.
async fn change(
    shared: &Shared,
    edit: impl FnOnce(&mut pgdata::DurableState, bool) + Send + 'static,
) -> Result<pgdata::DurableState, String> {
    let _writer = shared.files.lock().await;
    let dir = shared.ctx.data_dir();
    let work = move || {
        let found = pgdata::read_state(&dir);
        let mut state = found.or_strictest();
        edit(&mut state, found == pgdata::FoundState::Unknown);
        if found != pgdata::FoundState::Known(state) {
            pgdata::save_state(&dir, &state)?;
        }
        Ok::<_, std::io::Error>(state)
    };
    let done = pgdata::on_disk(work)
        .await
        .ok_or("the disk does not answer")?;
    done.map_err(|err| chain(&err))
}

/// Writes a configuration without a source and sees the WAL receiver gone.
async fn cut(shared: &Shared, client: &Client) -> Result<(), String> {
    let state = shared.conf_state(true, &Upstream::None);
    shared.write_conf(&state).await.map_err(|err| chain(&err))?;
    start::reload(shared).await.map_err(|err| chain(&err))?;
    shared.loaded(&state);
    let reloaded = Instant::now();
    let mut absent = 0;
    while absent < ABSENT_LOOKS {
        match receiver::find(client).await? {
            None => absent += 1,
            Some(pid) => {
                absent = 0;
                if reloaded.elapsed() >= LINGER {
                    receiver::end(client, pid).await?;
                }
            }
        }
        tokio::time::sleep(POLL / 2).await;
    }
    Ok(())
}

/// The frozen position: what was received or replayed, the larger, and its timeline. A walsender of
/// this standby names both together; without one, the timeline is the newest that the control file has
/// met, which lags behind until the next restartpoint.
async fn position(shared: &Shared, client: &Client) -> Result<(Timeline, Lsn), String> {
    let row = client
        .query_one(
            "SELECT GREATEST(pg_catalog.pg_last_wal_receive_lsn(), \
                             pg_catalog.pg_last_wal_replay_lsn())::text, \
             GREATEST((SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()), \
                      (SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery()))",
            &[],
        )
        .await
        .map_err(|err| chain(&err))?;
    let lsn: Option<String> = row.try_get(0).map_err(|err| chain(&err))?;
    let control: Option<i32> = row.try_get(1).map_err(|err| chain(&err))?;
    let lsn = lsn
        .and_then(|text| text.parse::<Lsn>().ok())
        .ok_or("no position is known")?;
    let asked = match connect::replication_local(&shared.ctx).await {
        Ok(session) => walsender::identify(&session)
            .await
            .map_err(|err| chain(&err)),
        Err(err) => Err(chain(&err)),
    };
    match asked {
        Ok(identity) => Ok((identity.timeline, lsn.max(identity.lsn))),
        Err(error) => {
            tracing::warn!(error, "the timeline comes from the control file");
            let timeline = control.and_then(|n| u32::try_from(n).ok()).map(Timeline);
            Ok((timeline.ok_or("no timeline is known")?, lsn))
        }
    }
}

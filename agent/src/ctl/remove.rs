//! `remove` (`cli.md` 8.16).

use super::args::{Format, Remove};
use super::console::prompt;
use super::error::{CtlResult, says};
use super::sayn;
use super::session::Session;
use super::show::{self, Layout};

/// What has to be typed.
const SENTENCE: &str = "Yes I am aware";

/// Deletes the cluster's keys after three answers that no option can give.
pub async fn remove(session: &Session, args: Remove) -> CtlResult<()> {
    let scope = args.cluster_name.as_str();
    let cluster = session.cluster(scope, args.group).await?;
    match args.format {
        Format::Pretty => sayn!("{}", show::table(&cluster)),
        format => sayn!("{}", show::members(&cluster, Layout::List(format), false)),
    }
    if prompt("Please confirm the cluster name to remove", None)? != scope {
        return says("Cluster names specified do not match");
    }
    let question = format!(
        "You are about to remove all information in DCS for {scope}, please type: \"{SENTENCE}\""
    );
    if prompt(&question, None)? != SENTENCE {
        return says(format!("You did not exactly type \"{SENTENCE}\""));
    }
    if let Some(leader) = cluster.leader() {
        let question =
            "This cluster currently is healthy. Please specify the leader name to continue";
        if prompt(question, None)? != leader.as_str() {
            return says("You did not specify the current leader of the cluster");
        }
    }
    cluster.delete_all().await
}

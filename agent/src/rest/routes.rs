//! Which handler a request is for: the method and the first segment of the path decide
//! (`rest-api.md` 2). The same table is the source of the OpenAPI document.

use hyper::Method;

/// A handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Liveness,
    Readiness,
    Status,
    Cluster,
    History,
    ShowConfig,
    PatchConfig,
    PutConfig,
    Metrics,
    FailsafeMembers,
    Failsafe,
    Reload,
    Sigterm,
    Restart,
    CancelRestart,
    Reinitialize,
    Failover,
    Switchover,
    CancelSwitchover,
    OtherClusters,
    Garden,
    OpenApi,
}

/// Who may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Everybody.
    Open,
    /// Callers that pass all checks.
    Checked,
    /// The same, but members are not looked up: etcd, which knows their addresses, is away.
    CheckedWithoutMembers,
}

/// Whether a request has a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyRule {
    None,
    Optional,
    Mandatory,
}

/// One row.
pub(super) struct Route {
    pub(super) method: &'static str,
    pub(super) segment: &'static str,
    pub(super) endpoint: Endpoint,
    pub(super) access: Access,
    pub(super) body: BodyRule,
    pub(super) summary: &'static str,
    pub(super) codes: &'static [u16],
}

const fn route(
    method: &'static str,
    segment: &'static str,
    endpoint: Endpoint,
    access: Access,
    body: BodyRule,
    codes: &'static [u16],
    summary: &'static str,
) -> Route {
    Route {
        method,
        segment,
        endpoint,
        access,
        body,
        summary,
        codes,
    }
}

use Access::{Checked, CheckedWithoutMembers, Open};
use BodyRule::{Mandatory, None as NoBody, Optional};

/// All of them.
#[rustfmt::skip]
pub(super) const ROUTES: &[Route] = &[
    route("GET", "liveness", Endpoint::Liveness, Open, NoBody, &[200, 503], "Whether the agent's loop still cycles."),
    route("GET", "readiness", Endpoint::Readiness, Open, NoBody, &[200, 503], "Whether this member leads, or streams closely enough."),
    route("GET", "patroni", Endpoint::Status, Open, NoBody, &[200], "The status of this member."),
    route("GET", "cluster", Endpoint::Cluster, Open, NoBody, &[200, 503], "All members."),
    route("GET", "history", Endpoint::History, Open, NoBody, &[200, 503], "One line for each finished timeline."),
    route("GET", "config", Endpoint::ShowConfig, Open, NoBody, &[200, 502, 503], "The dynamic configuration."),
    route("GET", "metrics", Endpoint::Metrics, Open, NoBody, &[200], "Metrics for Prometheus."),
    route("GET", "failsafe", Endpoint::FailsafeMembers, Open, NoBody, &[200, 502], "Whom a primary must reach while etcd is away."),
    route("GET", "garden", Endpoint::Garden, Open, NoBody, &[200], "What this member last decided, and why."),
    route("GET", "openapi.json", Endpoint::OpenApi, Open, NoBody, &[200], "This document."),
    route("PATCH", "config", Endpoint::PatchConfig, Checked, Mandatory, &[200, 400, 401, 403, 409, 411, 503], "Merge into the dynamic configuration."),
    route("PUT", "config", Endpoint::PutConfig, Checked, Mandatory, &[200, 400, 401, 403, 411, 502], "Replace the dynamic configuration."),
    route("POST", "reload", Endpoint::Reload, Checked, NoBody, &[202, 401, 403, 503], "Read the local configuration again."),
    route("POST", "sigterm", Endpoint::Sigterm, Checked, NoBody, &[202, 401, 403], "Kept for compatibility; does nothing."),
    route("POST", "restart", Endpoint::Restart, Checked, Optional, &[200, 202, 400, 401, 403, 409, 422, 500, 503], "Restart PostgreSQL, now or at a time."),
    route("DELETE", "restart", Endpoint::CancelRestart, Checked, NoBody, &[200, 401, 403, 404, 503], "Forget the scheduled restart."),
    route("POST", "reinitialize", Endpoint::Reinitialize, Checked, Optional, &[200, 400, 401, 403, 503], "Throw the data directory away and clone."),
    route("POST", "switchover", Endpoint::Switchover, Checked, Mandatory, &[200, 202, 400, 401, 403, 411, 412, 422, 503], "Hand leadership over, now or at a time."),
    route("POST", "failover", Endpoint::Failover, Checked, Mandatory, &[200, 202, 400, 401, 403, 411, 412, 422, 503], "Give leadership to a candidate."),
    route("DELETE", "switchover", Endpoint::CancelSwitchover, Checked, NoBody, &[200, 401, 403, 404, 409], "Forget the scheduled switchover."),
    route("POST", "failsafe", Endpoint::Failsafe, CheckedWithoutMembers, Mandatory, &[200, 400, 401, 403, 411, 500, 502, 503], "A primary asks whether it may go on without etcd."),
    route("POST", "citus", Endpoint::OtherClusters, Checked, Mandatory, &[200, 400, 401, 403, 411], "Kept for compatibility; does nothing."),
    route("POST", "mpp", Endpoint::OtherClusters, Open, Mandatory, &[200, 400, 411], "Kept for compatibility; does nothing."),
];

/// The row of a request; `None` when it has no handler of its own.
pub(super) fn find(method: &Method, path: &str) -> Option<&'static Route> {
    let segment = path.trim_start_matches('/').split('/').next()?;
    ROUTES
        .iter()
        .find(|route| route.segment == segment && route.method == method.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_segment_decides() {
        let endpoint = |method, path| find(&method, path).map(|route| route.endpoint);
        assert_eq!(
            endpoint(Method::GET, "/patroni/x/y"),
            Some(Endpoint::Status)
        );
        assert_eq!(
            endpoint(Method::GET, "/config/ttl"),
            Some(Endpoint::ShowConfig)
        );
        assert_eq!(
            endpoint(Method::PATCH, "/config"),
            Some(Endpoint::PatchConfig)
        );
        assert_eq!(endpoint(Method::HEAD, "/patroni"), None);
        assert_eq!(endpoint(Method::POST, "/"), None);
        assert_eq!(endpoint(Method::PUT, "/patroni"), None);
        assert_eq!(endpoint(Method::DELETE, "/failover"), None);
        assert_eq!(endpoint(Method::GET, "/Patroni"), None);
    }

    #[test]
    fn everything_that_changes_something_is_checked() {
        for route in ROUTES
            .iter()
            .filter(|route| route.method != "GET" && route.segment != "mpp")
        {
            assert_ne!(
                route.access,
                Access::Open,
                "{} /{}",
                route.method,
                route.segment
            );
        }
    }
}

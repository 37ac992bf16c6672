//! The mesh of the demo: six services, six nginx, and the resources an operator would write.
//!
//! - `web`: needs no L7; account `friend` may, nobody else.
//! - `shop`: account `friend` may GET below `/public`; refused while no daemon runs (`failureMode: closed`).
//! - `plain` and `fast`: alike, without and with short-circuit (`acceleration`); account `friend` may GET.
//! - `api`: split between `api-v1` and `api-v2`, 90 to 10.

use anyhow::Result;
use vm_test::{Lab, Nginx, Server, resources};

/// Path of `shop` that is open at first.
pub const PUBLIC: &str = "/public";

/// The service that is not short-circuited, and the one that is: two, because a connection is what it was at its first
/// byte, and the proxy keeps connections to its servers.
pub const PLAIN: &str = "plain";
pub const FAST: &str = "fast";

/// Servers of the demo; dropped, they end.
pub struct Servers(Vec<Server>);

// === impl Servers ===

impl Servers {
    /// Leaves them running when the demo ends.
    pub fn keep(self) {
        self.0.into_iter().for_each(std::mem::forget);
    }
}

/// Starts all servers in an open mesh.
pub fn start(lab: &Lab) -> Result<Servers> {
    let services = ["api", "api-v1", "api-v2"]
        .map(|name| resources::service(name, 80, "http"))
        .concat();
    let split = resources::split("api-canary", "api", &[("api-v1", 90), ("api-v2", 10)]);
    lab.resource("api.yaml", &format!("{services}{split}"))?;
    lab.resource(
        "shop.yaml",
        &resources::service_policy("shop", &["failureMode: closed"]),
    )?;
    lab.resource("plain.yaml", &resources::service_policy(PLAIN, &["acceleration: off"]))?;
    lab.resource("fast.yaml", &resources::service_policy(FAST, &["acceleration: proxy"]))?;
    Ok(Servers(vec![
        lab.nginx(Nginx::service("web").port(80, 8080))?,
        lab.nginx(Nginx::service("shop").port(80, 8081))?,
        lab.nginx(Nginx::service("api-v1").port(80, 8082).says("v1"))?,
        lab.nginx(Nginx::service("api-v2").port(80, 8083).says("v2"))?,
        lab.nginx(Nginx::service(PLAIN).port(80, 8084).says("hello"))?,
        lab.nginx(Nginx::service(FAST).port(80, 8085).says("hello"))?,
    ]))
}

/// Default deny, and who may reach `web` and `api` all the same: rules on connections.
pub fn deny_by_default(lab: &Lab) -> Result<()> {
    lab.resource("mesh.yaml", resources::DENY)?;
    let routes = [
        resources::tcp_route("web-port", &[8080]),
        resources::tcp_route("api-ports", &[8082, 8083]),
    ];
    let targets = [
        resources::allow("friend-web", "friend", "web", ("TCPRoute", "web-port")),
        resources::allow("friend-api-v1", "friend", "api-v1", ("TCPRoute", "api-ports")),
        resources::allow("friend-api-v2", "friend", "api-v2", ("TCPRoute", "api-ports")),
    ];
    lab.resource("connections.yaml", &format!("{}{}", routes.concat(), targets.concat()))
}

/// Who may do what with `shop`, `plain` and `fast`: rules on requests.
pub fn allow_get(lab: &Lab, path: &str) -> Result<()> {
    let route = resources::route("shop-reads", path, &["GET"]);
    let target = resources::allow("friend-reads-shop", "friend", "shop", ("HTTPRouteGroup", "shop-reads"));
    let all = resources::route("reads", "/", &["GET"]);
    let lanes = [PLAIN, FAST].map(|name| {
        resources::allow(
            &format!("friend-reads-{name}"),
            "friend",
            name,
            ("HTTPRouteGroup", "reads"),
        )
    });
    lab.resource("requests.yaml", &format!("{route}{target}{all}{}", lanes.concat()))
}

//! A web server that one account may reach, and nobody else.

use anyhow::{Result, ensure};

use crate::{Lab, Nginx, Server, curl, poll, resources};

/// Account `friend` may connect to port 8080 of account `web`; what nothing allows is denied.
pub fn rules() -> String {
    let route = resources::tcp_route("web-port", &[8080]);
    let allow = resources::allow("friend-web", "friend", "web", ("TCPRoute", "web-port"));
    format!("{}{route}{allow}", resources::DENY)
}

/// Service `web`, port 80, under [`rules`] that are there already. Waits until they are in force.
///
/// # Errors
/// They do not come into force, or the server does not start.
pub fn web(lab: &Lab) -> Result<Server> {
    let web = lab.nginx(Nginx::service("web").port(80, 8080))?;
    poll::until("friend alone to be let in", || {
        let (friend, stranger) = (
            lab.run("friend").curl("http://web/")?,
            lab.run("stranger").curl("http://web/")?,
        );
        ensure!(
            friend.http == 200 && stranger.code == curl::COULD_NOT_CONNECT,
            "{friend:?} {stranger:?}"
        );
        Ok(())
    })?;
    Ok(web)
}

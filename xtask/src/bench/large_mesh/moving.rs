//! A service whose one endpoint moves between two servers, and a client that sees it move.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_test::{Host, Hosts, Lab, Running, resources};

use super::milliseconds;

/// Of the services.
const PORT: u16 = 7;
/// Where the servers listen.
pub const TARGET_PORT: u16 = 7007;
/// Account of the endpoints.
pub const ACCOUNT: &str = "moving";

/// How an endpoint is changed: each has a service of its own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Its file in the folder of resources is replaced.
    File,
    /// `weft apply`.
    Apply,
}

pub struct Moving<'a> {
    how: How,
    lab: &'a Lab,
    client: Running,
    /// Lines that it said.
    told: usize,
}

/// A server outside any mesh that says which host it is on.
///
/// # Errors
/// It does not start.
pub fn server(host: &Host) -> Result<Running> {
    let (traffic, address) = (host.traffic()?, format!("0.0.0.0:{TARGET_PORT}"));
    let name = host.name().to_string();
    let mut server = Running::start(host.command([traffic.as_str(), "serve-says", &address, &name]))?;
    server.line(1)?;
    Ok(server)
}

// === impl How ===

impl How {
    fn service(self) -> &'static str {
        match self {
            Self::File => "by-file",
            Self::Apply => "by-apply",
        }
    }

    /// As clients of the mesh dial it.
    pub fn target(self) -> String {
        format!("{}:{PORT}", self.service())
    }

    pub fn service_object(self) -> String {
        resources::selecting_service(self.service(), (PORT, TARGET_PORT), "tcp")
    }

    /// Between which its endpoint moves: two of its own, for an address stands for one workload.
    pub fn hosts(self, hosts: &Hosts) -> [&Host; 2] {
        let first = match self {
            Self::File => 1,
            Self::Apply => 3,
        };
        [hosts.host(first), hosts.host(first + 1)]
    }

    /// Puts its one endpoint on this host.
    ///
    /// # Errors
    /// The file cannot be written, or the daemon refuses it.
    pub fn put(self, lab: &Lab, on: &Host) -> Result<()> {
        let name = self.service();
        let workload = resources::workload(name, name, ACCOUNT, &[on.v4().into()]);
        match self {
            Self::File => lab.resource("endpoint.yaml", &workload),
            Self::Apply => lab.apply(&workload),
        }
    }
}

// === impl Moving ===

impl<'a> Moving<'a> {
    /// Starts the client on the daemon's host.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(lab: &'a Lab, how: How) -> Result<Self> {
        let traffic = lab.traffic()?;
        let client = lab.run("client").account("friend");
        let mut client = client.start([traffic.as_str(), "until-says", &how.target()])?;
        client.line(1)?;
        Ok(Self {
            how,
            lab,
            client,
            told: 1,
        })
    }

    /// Puts the endpoint on another host; milliseconds from there until a new connection reached it.
    ///
    /// # Errors
    /// A connection failed, or none reached it.
    pub fn change(&mut self, to: &Host) -> Result<f64> {
        self.client.say(&to.name().to_string())?;
        let began = SystemTime::now().duration_since(UNIX_EPOCH).context("read the clock")?;
        self.how.put(self.lab, to)?;
        self.told += 1;
        let told: Value = serde_json::from_str(&self.client.line(self.told)?).context("what the client told")?;
        ensure!(told["ok"] == true && told["failed"] == 0, "{told}");
        let at = Duration::from_nanos(told["at"].as_u64().context("when it was")?);
        Ok(milliseconds(at.saturating_sub(began)))
    }
}

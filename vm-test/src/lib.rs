//! Labs for tests on real traffic: a network namespace, a cgroup and a folder of the test's own, the real `weft` binary
//! in it, real programs beside it, and nothing left behind.
//!
//! ```no_run
//! use vm_test::{Nginx, lab_test};
//!
//! lab_test("hello", |lab| {
//!     lab.daemon()?;
//!     let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
//!     let answer = lab.run("client").output(["curl", "-s", "http://web/"])?.ok()?;
//!     assert_eq!(answer.stdout, "hello from web\n");
//!     Ok(())
//! });
//! ```
//!
//! Rules of the house: no test sleeps to be right ([`poll::until`] is bounded and says what it waited for), every child
//! is killed by its number and never by its name, and a lab that panics prints its daemon's log.

#![forbid(unsafe_code)]

mod actor;
pub mod census;
pub mod cgroup;
pub mod curl;
mod daemon;
pub mod envoy;
pub mod filters;
pub mod friends;
mod harness;
mod hosts;
pub mod interrupt;
mod lab;
pub mod leak;
pub mod musl;
pub mod need;
mod netns;
mod nginx;
pub mod others;
pub mod pattern;
mod pods;
pub mod poll;
pub mod process;
pub mod resources;
pub mod runs;
pub mod soak;
pub mod torture;
mod workload;

pub use self::{
    actor::Actor,
    daemon::Held,
    harness::{hosts_test, lab_test},
    hosts::{Host, Hosts, Remote},
    lab::Lab,
    netns::EVERY_ADDRESS,
    nginx::{Nginx, Server, listens},
    pods::{Pod, Pods},
    process::{Output, Running},
    workload::Run,
};

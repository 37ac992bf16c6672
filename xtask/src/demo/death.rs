//! The act in which the daemon is killed.

use anyhow::{Context, Result, ensure};
use vm_test::{Lab, Running, curl, poll};

use super::screen::Screen;

/// A shell in the mesh that runs curl on every URL it reads: it was there before the daemon died.
struct Client {
    shell: Running,
    asked: usize,
}

/// How a request of [`Client`] ended.
struct Ended {
    exit: i32,
    http: u16,
    millis: f64,
}

// === impl Client ===

impl Client {
    fn new(lab: &Lab, account: &str) -> Result<Self> {
        let curl = r#"curl -s -o /dev/null --max-time 10 -w '%{exitcode} %{http_code} %{time_total}\n' "$url""#;
        let shell = lab
            .run(account)
            .start(["sh", "-c", &format!("while read url; do {curl}; done")])?;
        Ok(Self { shell, asked: 0 })
    }

    fn get(&mut self, url: &str) -> Result<Ended> {
        self.shell.say(url)?;
        self.asked += 1;
        let line = self.shell.line(self.asked)?;
        let mut words = line.split(' ');
        let mut word = || words.next().with_context(|| format!("curl printed `{line}`"));
        Ok(Ended {
            exit: word()?.parse()?,
            http: word()?.parse()?,
            millis: word()?.parse::<f64>()? * 1e3,
        })
    }

    /// # Errors
    /// It was answered, or it failed otherwise than in connect().
    fn refused(&mut self, url: &str) -> Result<String> {
        let Ended { exit, http, millis } = self.get(url)?;
        ensure!(exit == curl::COULD_NOT_CONNECT, "exit {exit}, status {http}");
        Ok(format!("exit {exit} after {millis:.1} ms"))
    }

    /// # Errors
    /// No 200.
    fn answered(&mut self, url: &str) -> Result<String> {
        let Ended { exit, http, millis } = self.get(url)?;
        ensure!(http == 200, "exit {exit}, status {http}");
        Ok(format!("{http} in {millis:.1} ms"))
    }
}

pub fn kill_9(lab: &Lab, screen: &mut Screen) -> Result<()> {
    // Names are the daemon's to answer; addresses are the kernel's.
    let [web, shop] = [address(lab, "web")?, address(lab, "shop")?].map(|ip| format!("http://{ip}/"));
    let public = format!("{shop}public");
    let (mut friend, mut stranger) = (Client::new(lab, "friend")?, Client::new(lab, "stranger")?);
    let pid = lab.daemon_pid()?;

    screen.act("The daemon is killed; the kernel goes on");
    lab.kill9()?;
    screen.check(
        "denied is denied",
        &format!("kill -9 {pid}; (stranger) curl {web}"),
        || stranger.refused(&web),
    )?;
    screen.check("allowed on L4 connects", &format!("(friend) curl {web}"), || {
        friend.answered(&web)
    })?;
    screen.check(
        "needs L7, failureMode closed: refused",
        &format!("(friend) curl {public}"),
        || friend.refused(&public),
    )?;

    screen.act("The daemon is back; everything as before");
    lab.daemon_with(super::FLAGS)?;
    screen.check("denied", "weft daemon &  (stranger) curl http://web/", || {
        stranger.refused("http://web/")
    })?;
    screen.check("allowed, by name again", "(friend) curl http://web/", || {
        friend.answered("http://web/")
    })?;
    screen.check("GET /public", "(friend) curl http://shop/public", || {
        friend.answered("http://shop/public")
    })?;
    screen.check("GET /admin", "(friend) curl http://shop/admin", || {
        let ended = friend.get("http://shop/admin")?;
        ensure!(ended.http == 403, "exit {}, status {}", ended.exit, ended.http);
        Ok(ended.http.to_string())
    })?;
    screen.check(
        "the same virtual IP",
        "weft run --service friend -- getent ahostsv4 web",
        || {
            let now = format!("http://{}/", address(lab, "web")?);
            ensure!(now == web, "it was {web} and is {now}");
            Ok(now)
        },
    )
}

fn address(lab: &Lab, service: &str) -> Result<String> {
    poll::until("the name to be resolved", || {
        let hosts = lab.run("friend").output(["getent", "ahostsv4", service])?.ok()?.stdout;
        Ok(hosts.split_whitespace().next().context("an address")?.to_owned())
    })
}

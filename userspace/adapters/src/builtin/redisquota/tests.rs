use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{Arc, atomic::AtomicU16, mpsc},
    thread,
    time::Instant,
};

use redis::Commands;
use serde_json::{Value, json};
use tokio::runtime;

use super::*;
use crate::{
    attribute::tests::with_bag,
    tls::tests::{Pki, skipped},
};

/// A Redis of the test's own.
struct Redis {
    child: Child,
    port: u16,
}

impl Redis {
    /// `None`: there is no such program here.
    fn start(password: Option<&str>) -> Option<Self> {
        let words = password.map_or_else(Vec::new, |password| {
            vec!["--requirepass".to_owned(), password.to_owned()]
        });
        Self::start_with(&words, "--port")
    }

    /// Which listens with TLS alone, and wants to know its clients.
    fn start_secure(pki: &Pki) -> Option<Self> {
        let files = [
            ("--tls-ca-cert-file", "ca.pem"),
            ("--tls-cert-file", "server.pem"),
            ("--tls-key-file", "server.key"),
        ];
        let files = files.map(|(word, file)| [word.to_owned(), pki.file(file).display().to_string()]);
        Self::start_with(
            &[vec!["--port".to_owned(), "0".to_owned()], files.concat()].concat(),
            "--tls-port",
        )
    }

    fn start_with(words: &[String], port_word: &str) -> Option<Self> {
        for _ in 0..20 {
            // Free just now; if somebody takes it meanwhile, Redis says so and ends.
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut command = Command::new("setpriv");
            command
                .args(["--pdeathsig", "KILL", "--", "redis-server", "--bind", "127.0.0.1"])
                .args(["--save", "", "--appendonly", "no", "--daemonize", "no", port_word])
                .arg(port.to_string())
                .args(words)
                .stdout(Stdio::piped())
                .stderr(Stdio::null());
            let has_redis = Command::new("redis-server").arg("--version").output().is_ok();
            let child = has_redis.then(|| command.spawn().ok()).flatten();
            let Some(mut child) = child else {
                skipped(
                    "redisquota",
                    "redis-server and setpriv (Debian packages redis-server, util-linux)",
                );
                return None;
            };
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            if lines.any(|line| line.unwrap().contains("Ready to accept connections")) {
                // Whatever else it says must not fill the pipe.
                thread::spawn(move || lines.count());
                return Some(Self { child, port });
            }
            child.wait().unwrap();
        }
        panic!("Redis does not start");
    }

    fn client(&self) -> redis::Connection {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
        client.get_connection().unwrap()
    }

    fn adapter(&self, quota: Value) -> RedisQuota {
        adapter(json!({"redis_server_url": format!("127.0.0.1:{}", self.port), "timeout": "20s", "quotas": [quota]}))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn adapter(config: Value) -> RedisQuota {
    let config = serde_json::from_value(config).unwrap();
    RedisQuota::new("q", config, None, &CheckMetrics::default()).unwrap()
}

fn with_runtime<T>(body: impl FnOnce(&runtime::Runtime) -> T) -> T {
    body(&runtime::Builder::new_current_thread().enable_all().build().unwrap())
}

fn ask_in(runtime: &runtime::Runtime, adapter: &RedisQuota, headers: &[(&str, &str)]) -> CheckResult {
    with_bag(headers, |bag| {
        runtime.block_on(async {
            match adapter.check(&bag) {
                Checking::Pending(answer) => answer.await,
                Checking::Ready(_) => panic!("Redis was not asked"),
            }
        })
    })
}

/// How many of `times` requests are allowed.
fn allowed(adapter: &RedisQuota, times: usize, headers: &[(&str, &str)]) -> usize {
    with_runtime(|runtime| {
        (0..times)
            .filter(|_| ask_in(runtime, adapter, headers) == CheckResult::Allow)
            .count()
    })
}

/// What a client that is refused is told to wait, in seconds.
fn refusal(adapter: &RedisQuota) -> Option<u64> {
    let CheckResult::Deny(deny) = with_runtime(|runtime| ask_in(runtime, adapter, &[])) else {
        panic!("it is allowed");
    };
    assert_eq!((deny.status, deny.message.as_str()), (429, "quota `a` is exhausted"));
    let (name, value) = deny.headers.first()?;
    assert_eq!(name, header::RETRY_AFTER);
    Some(value.to_str().unwrap().parse().unwrap())
}

fn fixed(most: u32) -> Value {
    json!({"name": "a", "max_amount": most, "valid_duration": "1h"})
}

const FIXED_COUNT: &str = "weft:q:a:fixed:count:";

#[test]
fn a_fixed_window_grants_its_amount_until_it_ends() {
    let Some(redis) = Redis::start(None) else { return };
    let mut client = redis.client();
    let adapter = redis.adapter(fixed(3));
    assert_eq!(allowed(&adapter, 5, &[]), 3);
    let wait = refusal(&adapter).unwrap();
    assert!((1..=3600).contains(&wait), "{wait}");
    let left: u64 = client.pttl::<_, i64>(FIXED_COUNT).unwrap().try_into().unwrap();
    assert!(
        left <= 3_600_000 && left.div_ceil(1000) <= wait,
        "{left} ms left, {wait} s told"
    );
    // Its end, without waiting for it.
    let _: () = client.pexpire(FIXED_COUNT, 0).unwrap();
    assert_eq!(allowed(&adapter, 5, &[]), 3);
}

#[test]
fn a_rolling_window_gives_back_what_has_left_it() {
    let Some(redis) = Redis::start(None) else { return };
    let mut client = redis.client();
    // 10 buckets of 10 hours.
    let adapter = redis.adapter(json!({"name": "a", "max_amount": 3, "valid_duration": "100h",
        "rate_limit_algorithm": "ROLLING_WINDOW", "bucket_duration": "10h"}));
    const COUNTS: &str = "weft:q:a:rolling-36000000ms:count:";
    assert_eq!(allowed(&adapter, 2, &[]), 2);
    let mut age = |by: i64| {
        let counts: Vec<(i64, i64)> = client.hgetall(COUNTS).unwrap();
        let _: () = client.del(COUNTS).unwrap();
        for (bucket, count) in counts {
            let _: () = client.hincr(COUNTS, bucket - by, count).unwrap();
        }
    };
    // Within the window yet, even if a bucket ends just now.
    age(9);
    assert_eq!(allowed(&adapter, 2, &[]), 1);
    let wait = refusal(&adapter).unwrap();
    assert!((1..=20 * 3600).contains(&wait), "{wait}");
    // Two have left it, one has not.
    age(2);
    assert_eq!(allowed(&adapter, 5, &[]), 2);
    let left: i64 = client.pttl(COUNTS).unwrap();
    assert!((1..=11 * 36_000_000).contains(&left), "{left}");
    // What has left is forgotten.
    let counts: Vec<(i64, i64)> = client.hgetall(COUNTS).unwrap();
    assert_eq!(counts.iter().map(|(_, count)| count).sum::<i64>(), 3);
}

#[test]
fn daemons_and_workers_share_a_quota_and_never_grant_more() {
    let Some(redis) = Redis::start(None) else { return };
    for (window, quota) in [
        ("fixed", fixed(100)),
        (
            "rolling",
            json!({"name": "a", "max_amount": 100, "valid_duration": "1h",
                "rate_limit_algorithm": "ROLLING_WINDOW", "bucket_duration": "1m"}),
        ),
    ] {
        let daemons = [redis.adapter(quota.clone()), redis.adapter(quota)];
        let granted: usize = thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|worker| {
                    scope.spawn({
                        let daemons = &daemons;
                        move || allowed(&daemons[worker % 2], 40, &[])
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!(granted, 100, "{window}");
    }
}

#[test]
fn dimensions_are_counted_apart_and_some_have_other_limits() {
    let Some(redis) = Redis::start(None) else { return };
    let adapter = redis.adapter(json!({"name": "a", "max_amount": 2, "valid_duration": "1h",
        "dimensions": {"user": "request.headers[x-user]"},
        "overrides": [{"dimensions": {"user": "batch"}, "max_amount": 1}]}));
    for (user, most) in [("ann", 2), ("bob", 2), ("batch", 1), ("", 2)] {
        assert_eq!(allowed(&adapter, 4, &[("x-user", user)]), most, "{user}");
    }
    assert_eq!(allowed(&adapter, 4, &[]), 2);
    let none = redis.adapter(json!({"name": "none", "max_amount": 0, "valid_duration": "1h"}));
    let CheckResult::Deny(deny) = with_runtime(|runtime| ask_in(runtime, &none, &[])) else {
        panic!("it is allowed");
    };
    assert!(deny.headers.is_empty(), "nothing comes back: {deny:?}");
}

#[test]
fn every_quota_is_charged_until_one_is_exhausted() {
    let Some(redis) = Redis::start(None) else { return };
    let mut config = json!({"redis_server_url": format!("localhost:{}", redis.port), "timeout": "20s",
        "connection_pool_size": 3, "quotas": [fixed(2), fixed(1)]});
    config["quotas"][1]["name"] = json!("b");
    let adapter = adapter(config);
    assert_eq!(allowed(&adapter, 1, &[]), 1);
    let CheckResult::Deny(deny) = with_runtime(|runtime| ask_in(runtime, &adapter, &[])) else {
        panic!("it is allowed");
    };
    assert_eq!(deny.message, "quota `b` is exhausted");
    assert!(refusal(&adapter).is_some());
}

/// Passes on what is said between one client after the other and Redis, except the first answer that grants something: there
/// it hangs up.
fn lossy(redis: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut lose = true;
        while let Ok((client, _)) = listener.accept() {
            let server = TcpStream::connect(("127.0.0.1", redis)).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || {
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
            let (mut from, mut to) = (server, client);
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                let grants = buffer[..length].starts_with(b"*2\r\n:1\r\n");
                if grants && std::mem::take(&mut lose) {
                    break;
                }
                to.write_all(&buffer[..length]).unwrap();
            }
            let _ = to.shutdown(Shutdown::Both);
        }
    });
    port
}

#[test]
fn a_question_whose_answer_was_lost_is_repeated_and_charged_once() {
    let Some(redis) = Redis::start(None) else { return };
    for (count, quota) in [
        (FIXED_COUNT, fixed(5)),
        (
            "weft:q:a:rolling-60000ms:count:",
            json!({"name": "a", "max_amount": 5, "valid_duration": "1h",
                "rate_limit_algorithm": "ROLLING_WINDOW", "bucket_duration": "1m"}),
        ),
    ] {
        let port = lossy(redis.port);
        let through =
            adapter(json!({"redis_server_url": format!("127.0.0.1:{port}"), "timeout": "20s", "quotas": [quota]}));
        with_runtime(|runtime| {
            // Connected, and with an answer that is not the one to lose.
            let question = refused_question(&through, count);
            let used = Cell::new(None);
            let refused = through.server.run(&question, &used);
            assert_eq!(runtime.block_on(refused).unwrap().0, 0);
            assert_eq!(ask_in(runtime, &through, &[]), CheckResult::Allow);
        });
        let mut client = redis.client();
        let charged: i64 = match count {
            FIXED_COUNT => client.get(count).unwrap(),
            _ => client.hvals::<_, Vec<i64>>(count).unwrap().iter().sum(),
        };
        assert_eq!(charged, 1, "{count}");
        assert_eq!(through.outage.failures.get(), 0);
    }
}

/// One that grants nothing because the most is nought.
fn refused_question<'a>(adapter: &'a RedisQuota, count: &str) -> redis::ScriptInvocation<'a> {
    let script = if count == FIXED_COUNT {
        &adapter.fixed
    } else {
        &adapter.rolling
    };
    let mut call = script.key(count);
    call.key("none").arg(0).arg(60).arg(60_000).arg(1000);
    call
}

#[test]
fn a_worker_reconnects_to_a_redis_that_came_back() {
    let Some(redis) = Redis::start(None) else { return };
    let adapter = redis.adapter(fixed(5));
    with_runtime(|runtime| {
        assert_eq!(ask_in(runtime, &adapter, &[]), CheckResult::Allow);
        let _: () = redis::cmd("CLIENT")
            .arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"])
            .query(&mut redis.client())
            .unwrap();
        assert_eq!(ask_in(runtime, &adapter, &[]), CheckResult::Allow);
    });
    assert_eq!(adapter.outage.failures.get(), 0);
}

/// Passes on what is said between each client and the Redis at the port that holds when it comes, which seems to answer
/// after `wait` for the first time.
fn relay(target: Arc<AtomicU16>, wait: Duration) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let pass = |mut from: TcpStream, mut to: TcpStream| {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    };
    thread::spawn(move || {
        while let Ok((client, _)) = listener.accept() {
            let server = TcpStream::connect(("127.0.0.1", target.load(Ordering::SeqCst))).unwrap();
            let (asks, answers) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || pass(asks, server));
            thread::spawn(move || {
                thread::sleep(wait);
                pass(answers, client);
            });
        }
    });
    port
}

/// It still answers, but writes nothing.
#[test]
fn a_worker_leaves_a_primary_that_was_demoted() {
    let (Some(demoted), Some(primary)) = (Redis::start(None), Redis::start(None)) else {
        return;
    };
    let target = Arc::new(AtomicU16::new(demoted.port));
    let port = relay(Arc::clone(&target), Duration::ZERO);
    let adapter =
        adapter(json!({"redis_server_url": format!("127.0.0.1:{port}"), "timeout": "20s", "quotas": [fixed(5)]}));
    with_runtime(|runtime| {
        assert_eq!(ask_in(runtime, &adapter, &[]), CheckResult::Allow);
        // Of nobody, so that there is nothing to load.
        let _: () = redis::cmd("REPLICAOF")
            .arg("127.0.0.1")
            .arg(1)
            .query(&mut demoted.client())
            .unwrap();
        target.store(primary.port, Ordering::SeqCst);
        for _ in 0..2 {
            assert_eq!(ask_in(runtime, &adapter, &[]), CheckResult::Allow);
        }
    });
    assert_eq!(primary.client().get::<_, i64>(FIXED_COUNT).unwrap(), 2);
    assert_eq!((adapter.outage.failures.get(), adapter.server.made()), (0, 2));
}

/// Else no request would ever live to see its connection.
#[test]
fn connecting_goes_on_when_the_request_that_began_it_is_gone() {
    let Some(redis) = Redis::start(None) else { return };
    let port = relay(Arc::new(AtomicU16::new(redis.port)), Duration::from_secs(1));
    let adapter =
        adapter(json!({"redis_server_url": format!("127.0.0.1:{port}"), "timeout": "300ms", "quotas": [fixed(5)]}));
    with_runtime(|runtime| {
        let begin = Instant::now();
        while ask_in(runtime, &adapter, &[]) != CheckResult::Allow {
            assert!(begin.elapsed() < Duration::from_secs(30), "it never connects");
        }
    });
}

#[test]
fn only_the_connection_that_did_not_answer_is_given_up() {
    let Some(redis) = Redis::start(None) else { return };
    let adapter = adapter(
        json!({"redis_server_url": format!("127.0.0.1:{}", redis.port), "timeout": "20s",
        "connection_pool_size": 2, "quotas": [fixed(5)]}),
    );
    with_runtime(|runtime| {
        let run = || {
            let used = Cell::new(None);
            let question = refused_question(&adapter, FIXED_COUNT);
            runtime.block_on(adapter.server.run(&question, &used)).unwrap();
            used.get().unwrap()
        };
        let (one, _other) = (run(), run());
        assert_eq!(adapter.server.made(), 2);
        // Who learns late that it did not answer does not mean the one in its place.
        for _ in 0..2 {
            adapter.server.give_up(one);
            for _ in 0..2 {
                run();
            }
            assert_eq!(adapter.server.made(), 3);
        }
    });
}

#[test]
fn a_password_and_a_database_are_used() {
    let Some(redis) = Redis::start(Some("secret")) else {
        return;
    };
    let url = |password: &str| {
        json!({"redis_server_url": format!("redis://:{password}@127.0.0.1:{}/3", redis.port),
            "timeout": "20s", "quotas": [fixed(1)]})
    };
    assert_eq!(allowed(&adapter(url("secret")), 2, &[]), 1);
    assert_eq!(allowed(&adapter(url("wrong")), 1, &[]), 0);
    let client = redis::Client::open(format!("redis://:secret@127.0.0.1:{}/3", redis.port)).unwrap();
    assert!(client.get_connection().unwrap().exists::<_, bool>(FIXED_COUNT).unwrap());
}

#[test]
fn where_redis_does_not_answer_the_failure_policy_applies() {
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let (hold, held) = mpsc::channel();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let hanging = silent.local_addr().unwrap();
    thread::spawn(move || silent.incoming().try_for_each(|stream| hold.send(stream)));
    let denied = Some(Box::new(Deny::new(503, UNAVAILABLE)));
    for (policy, expect) in [
        ("open", CheckResult::Unjudged(None)),
        ("closed", CheckResult::Unjudged(denied)),
    ] {
        for address in [nobody, hanging] {
            let adapter = adapter(json!({"redis_server_url": address.to_string(), "timeout": "30ms",
                "failure_policy": policy, "quotas": [fixed(1)]}));
            assert_eq!(
                with_runtime(|runtime| ask_in(runtime, &adapter, &[])),
                expect,
                "{address}"
            );
            assert_eq!(adapter.outage.failures.get(), 1);
        }
    }
    drop(held);
}

#[test]
fn parameters_are_checked() {
    let quota = |more: Value| {
        let mut quota = fixed(1);
        quota.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"quotas": [quota]})
    };
    let rolling = |bucket: &str| quota(json!({"rate_limit_algorithm": "ROLLING_WINDOW", "bucket_duration": bucket}));
    let url = |url: &str| json!({"quotas": [fixed(1)], "redis_server_url": url});
    let bucket = "expected less than valid_duration, a hundredth of it or more, and 1ms or more, in quota `a`";
    let address = "expected `host:port` or `redis[s]://[user][:password]@host[:port][/database]`";
    for (config, expect) in [
        (
            json!({"quotas": []}),
            "field `quotas`: found `[]`, expected at least one quota".to_owned(),
        ),
        (
            json!({"quotas": [fixed(1), fixed(2)]}),
            "field `quotas.name`: found `a twice`, expected names that differ, as they stand in Redis".to_owned(),
        ),
        (
            quota(json!({"valid_duration": "1ms"})),
            "field `valid_duration`: found `1ms`, expected 10ms to 8760h in quota `a`".to_owned(),
        ),
        (
            quota(json!({"bucket_duration": "1s"})),
            "field `bucket_duration`: found `1s`, expected none, or ROLLING_WINDOW, in quota `a`".to_owned(),
        ),
        (
            quota(json!({"rate_limit_algorithm": "ROLLING_WINDOW"})),
            format!("field `bucket_duration`: found `none`, {bucket}"),
        ),
        (
            rolling("1h"),
            format!("field `bucket_duration`: found `3600s`, {bucket}"),
        ),
        (
            rolling("35s"),
            format!("field `bucket_duration`: found `35s`, {bucket}"),
        ),
        (
            quota(json!({"overrides": [{"dimensions": {"user": "a"}, "max_amount": 1}]})),
            "field `overrides.dimensions`: found `user`, expected a dimension of quota `a` ()".to_owned(),
        ),
        (
            json!({"quotas": [fixed(1)], "connection_pool_size": 0}),
            "field `connection_pool_size`: found `0`, expected 1 to 100".to_owned(),
        ),
        (
            url("rediss://:secret@:1"),
            format!("field `redis_server_url`: found `:1`, {address}"),
        ),
        (url("a:b"), format!("field `redis_server_url`: found `a:b`, {address}")),
        (
            url("unix:///run/redis"),
            format!("field `redis_server_url`: found `unix:///run/redis`, {address}"),
        ),
    ] {
        let config = serde_json::from_value(config).unwrap();
        let error = RedisQuota::new("q", config, None, &CheckMetrics::default()).unwrap_err();
        assert_eq!(error.to_string(), format!("adapter `redisquota`, {expect}"));
    }
}

/// Each example of the page is a configuration that loads.
#[test]
fn the_examples_of_the_page_load() {
    let examples = crate::builtin::page_examples(include_str!("README.md"));
    assert_eq!(examples.len(), 2);
    for example in examples {
        adapter(serde_json::from_str(example).unwrap());
    }
}

#[test]
fn a_redis_behind_tls_counts_as_well() {
    let pki = Pki::new();
    let Some(redis) = Redis::start_secure(&pki) else { return };
    let url = format!("rediss://127.0.0.1:{}", redis.port);
    let files = ["ca.pem", "client.pem", "client.key"].map(|file| pki.file(file).display().to_string());
    let of = |tls: Value| {
        adapter(
            json!({"redis_server_url": url, "tls": tls, "timeout": "20s", "failure_policy": "closed",
            "quotas": [fixed(2)]}),
        )
    };
    let known = of(json!({"ca_file": files[0], "cert_file": files[1], "key_file": files[2]}));
    assert_eq!(allowed(&known, 3, &[]), 2);
    assert_eq!(
        allowed(&of(json!({"ca_file": files[0]})), 1, &[]),
        0,
        "it shows no certificate"
    );
    // `weft check` may run where the files are not.
    let elsewhere = json!({"redis_server_url": "rediss://a", "tls": {"ca_file": "/nowhere"}, "quotas": [fixed(1)]});
    serde_json::from_value::<Config>(elsewhere).unwrap().validate().unwrap();
    let plain = json!({"redis_server_url": "127.0.0.1:1", "tls": {}, "quotas": [fixed(1)]});
    let refused = RedisQuota::new(
        "q",
        serde_json::from_value(plain).unwrap(),
        None,
        &CheckMetrics::default(),
    );
    assert_eq!(
        refused.unwrap_err().to_string(),
        "adapter `redisquota`, field `tls`: found `127.0.0.1:1`, expected a `rediss` URL where `tls` is given"
    );
}

//! Workloads in network namespaces of their own.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_test::{Lab, Nginx, Pod, Pods, Running, curl, lab_test, poll, resources};

const EPERM: i64 = 1;
const ECONNREFUSED: i64 = 111;

/// friend, web and stranger, each a pod; web serves port 80 by nginx at 8080, which says whom it sees.
struct Mesh<'lab> {
    lab: &'lab Lab,
    pods: Pods<'lab>,
    friend: Pod<'lab>,
    web: Pod<'lab>,
    stranger: Pod<'lab>,
}

// === impl Mesh ===

impl<'lab> Mesh<'lab> {
    fn new(lab: &'lab Lab) -> Result<Self> {
        let pods = Pods::new(lab)?;
        let [friend, web, stranger] = [pods.pod(2)?, pods.pod(3)?, pods.pod(4)?];
        let yaml = [
            resources::selecting_service("web", (80, 8080), "http"),
            friend.workload("friend", "friend"),
            web.workload("web", "web"),
            stranger.workload("stranger", "stranger"),
        ];
        lab.resource("pods.yaml", &yaml.concat())?;
        lab.daemon()?;
        Ok(Self {
            lab,
            pods,
            friend,
            web,
            stranger,
        })
    }

    fn serve(&self) -> Result<vm_test::Server> {
        self.web
            .nginx(&Nginx::service("web").port(80, 8080).says("to $remote_addr"))
    }

    /// Friend may, by TCP; nobody else.
    fn tcp_rule(&self) -> Result<()> {
        let yaml = [
            resources::DENY.to_owned(),
            resources::tcp_route("web-port", &[8080]),
            resources::allow("friend-web", "friend", "web", ("TCPRoute", "web-port")),
        ];
        self.lab.resource("access.yaml", &yaml.concat())
    }

    /// Friend may GET what is below a path.
    fn http_rule(&self, path: &str) -> Result<()> {
        let yaml = [
            resources::DENY.to_owned(),
            resources::route("public", path, &["GET"]),
            resources::allow("friend-web", "friend", "web", ("HTTPRouteGroup", "public")),
        ];
        self.lab.resource("access.yaml", &yaml.concat())
    }

    fn denied_to_stranger(&self) -> Result<()> {
        poll::until("stranger to be denied", || {
            let answer = self.stranger.curl(&[], "http://web/")?;
            ensure!(answer.code == curl::COULD_NOT_CONNECT, "{answer:?}");
            ensure!(answer.told.contains("Operation not permitted"), "{answer:?}");
            Ok(())
        })
    }

    /// What `weft status` says of a pod.
    fn status_of(&self, number: u8) -> Result<Value> {
        let status = self.lab.status()?;
        let workloads = status["workloads"].as_array().context("workloads")?;
        let name = format!("default/p{number}");
        let found = workloads.iter().find(|workload| workload["name"] == *name);
        found.cloned().with_context(|| format!("no {name} in {status}"))
    }
}

/// A program in a pod that connects when told to.
struct Client(Running, usize);

// === impl Client ===

impl Client {
    fn new(lab: &Lab, pod: &Pod<'_>) -> Result<Self> {
        let traffic = lab.traffic()?;
        let script = format!("while read target; do {traffic} connect $target; done");
        Ok(Self(pod.start(["sh", "-c", &script])?, 0))
    }

    /// Whether a connection comes about; else its errno.
    fn connect(&mut self, target: &str) -> Result<Result<(), i64>> {
        self.0.say(target)?;
        self.1 += 1;
        let told: Value = serde_json::from_str(&self.0.line(self.1)?)?;
        Ok(if told["ok"] == true {
            Ok(())
        } else {
            Err(told["errno"].as_i64().context("an errno")?)
        })
    }
}

/// The address by which a pod reaches a service, asked of the DNS server inside.
fn vip(pod: &Pod<'_>, service: &str) -> Result<String> {
    let hosts = pod.output(["getent", "ahostsv4", service])?.ok()?.stdout;
    Ok(hosts.split_whitespace().next().context("an address")?.to_owned())
}

fn descriptors(pid: i32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

#[test]
fn the_accepting_end_in_another_namespace_knows_who_dialled() {
    lab_test("pods-conns", |lab| {
        let pods = Pods::new(lab)?;
        let pod = pods.pod(2)?;
        lab.daemon()?;
        let traffic = lab.traffic()?;
        let server = [&traffic, "serve-echo", "[::]:8080"];
        let words = pod.enter().into_iter().chain(server.map(str::to_owned));
        let mut server = lab.run("web").start(words)?;
        server.line(1)?;
        for address in pod.addresses() {
            let target = SocketAddr::new(address, 8080).to_string();
            lab.run("friend").output([&*traffic, "connect", &target])?.ok()?;
            let of = |event: &'static str| {
                let address = address.to_string();
                move |flow: &Value| flow["event"] == event && flow["destination"]["address"] == *address
            };
            let open = lab.flow("open", of("open"))?;
            ensure!(open["source"]["account"] == "friend", "{open}");
            lab.flow("close", of("close"))?;
            // Both ends are in the mesh: the dialling one reports, and the accepting one knows that it does.
            let twice: Vec<Value> = lab.flows()?.into_iter().filter(of("open")).collect();
            ensure!(twice.len() == 1, "reported by each end: {twice:?}");
        }
        Ok(())
    });
}

#[test]
fn pods_reach_each_other_by_name_and_are_denied_by_account() {
    lab_test("pods", |lab| {
        let mesh = Mesh::new(lab)?;
        let _nginx = mesh.serve()?;
        for (flag, source) in [("-4", mesh.friend.addresses()[0]), ("-6", mesh.friend.addresses()[1])] {
            let answer = mesh.friend.curl(&[flag], "http://web/")?;
            ensure!(answer.body == format!("to {source}\n"), "{flag}: {answer:?}");
            ensure!(
                !answer.remote.starts_with("10.88.") && !answer.remote.starts_with("fd88"),
                "it believes to talk to the service: {answer:?}"
            );
        }
        mesh.tcp_rule()?;
        mesh.denied_to_stranger()?;
        let [v4, v6] = mesh.web.addresses();
        for endpoint in [format!("http://{v4}:8080/"), format!("http://[{v6}]:8080/")] {
            let answer = mesh.stranger.curl(&["-g"], &endpoint)?;
            ensure!(
                answer.told.contains("Operation not permitted"),
                "{endpoint}: {answer:?}"
            );
            let answer = mesh.friend.curl(&["-g"], &endpoint)?;
            ensure!(answer.http == 200, "{endpoint}: {answer:?}");
        }
        let denied = lab.flow("the denial", |flow| flow["verdict"] == "deny")?;
        ensure!(
            denied["source"]["account"] == "stranger" && denied["errno"] == EPERM,
            "{denied}"
        );
        let view = mesh.status_of(2)?;
        ensure!(view["state"] == "captured" && view["cgroup_id"].is_u64(), "{view}");
        ensure!(view["netns"] == *mesh.friend.path().display().to_string(), "{view}");
        Ok(())
    });
}

#[test]
fn a_rule_on_requests_is_judged_inside_and_the_server_sees_the_pod() {
    lab_test("pods-l7", |lab| {
        let mesh = Mesh::new(lab)?;
        let _nginx = mesh.serve()?;
        mesh.http_rule("/public")?;
        poll::until("requests to be judged", || {
            let answer = mesh.friend.curl(&[], "http://web/admin")?;
            ensure!(answer.http == 403, "{answer:?}");
            Ok(())
        })?;
        for (source, endpoint) in mesh.friend.addresses().into_iter().zip(mesh.web.addresses()) {
            let url = format!("http://{}/public", SocketAddr::new(endpoint, 8080));
            let answer = mesh.friend.curl(&["-g"], &url)?;
            let seen = format!("to {source}\n");
            ensure!((answer.http, &*answer.body) == (200, &*seen), "{answer:?}");
        }
        for flag in ["-4", "-6"] {
            let answer = mesh.friend.curl(&[flag], "http://web/public")?;
            let seen = mesh.friend.addresses().map(|source| format!("to {source}\n"));
            ensure!(answer.http == 200 && seen.contains(&answer.body), "{flag}: {answer:?}");
        }
        mesh.denied_to_stranger()?;
        let flow = lab.flow("the request", |flow| flow["l7"]["path"] == "/public")?;
        ensure!(
            flow["source"]["account"] == "friend" && flow["verdict"] == "allow",
            "{flow}"
        );
        Ok(())
    });
}

#[test]
fn a_connection_between_pods_that_is_denied_now_is_reset() {
    lab_test("pods-cut", |lab| {
        let mesh = Mesh::new(lab)?;
        let traffic = lab.traffic()?;
        let mut server = mesh.web.start([&*traffic, "serve-echo", "[::]:8080"])?;
        server.line(1)?;
        let mut held = Vec::new();
        for endpoint in mesh.web.addresses() {
            let target = SocketAddr::new(endpoint, 8080).to_string();
            let mut client = mesh.stranger.start([&*traffic, "hold", &target])?;
            client.line(1)?;
            client.say("before")?;
            ensure!(client.line(2)?.contains("true"), "{}", client.line(2)?);
            held.push(client);
        }
        mesh.tcp_rule()?;
        mesh.denied_to_stranger()?;
        for client in &mut held {
            client.say("after")?;
            let told: Value = serde_json::from_str(&client.line(3)?)?;
            // Its own end was destroyed: it learns of it at once.
            ensure!(told["ok"] == false && told["error"].is_string(), "{told}");
        }
        Ok(())
    });
}

#[test]
fn what_arrives_at_a_pod_from_outside_the_mesh_is_judged_there() {
    lab_test("pods-inbound", |lab| {
        let mesh = Mesh::new(lab)?;
        let _nginx = mesh.serve()?;
        mesh.http_rule("/public")?;
        mesh.denied_to_stranger()?;
        // One that is friend by its address alone, and one that nobody knows. No hook runs where they dial.
        let [known, unknown] = [mesh.pods.pod(5)?, mesh.pods.pod(6)?];
        lab.resource("known.yaml", &known.declared("friend", "friend"))?;
        let from = |pod: &Pod<'_>, path: &str| {
            let url = format!("http://{}:8080{path}", mesh.web.v4());
            let words = [
                "curl",
                "-s",
                "-w",
                "%{http_code}",
                "-o",
                "/dev/null",
                "--max-time",
                &curl::max_time(0),
                &url,
            ];
            let words = pod.enter().into_iter().chain(words.map(str::to_owned));
            lab.outside(words)
        };
        poll::until("the known one to be let in", || {
            let answer = from(&known, "/public")?;
            ensure!((answer.code, &*answer.stdout) == (0, "200"), "{answer:?}");
            Ok(())
        })?;
        let answer = from(&known, "/admin")?;
        ensure!((answer.code, &*answer.stdout) == (0, "403"), "{answer:?}");
        let answer = from(&unknown, "/public")?;
        ensure!(answer.code == curl::COULD_NOT_CONNECT, "refused at once: {answer:?}");
        lab.flow("its refusal", |flow| {
            flow["verdict"] == "deny" && flow["source"]["account"] == "unknown" && flow["reporter"] == "destination"
        })?;
        Ok(())
    });
}

#[test]
fn a_service_on_the_daemons_loopback_is_reached_from_a_pod_through_the_proxy() {
    lab_test("pods-home", |lab| {
        let mesh = Mesh::new(lab)?;
        let _home = lab.nginx(Nginx::service("home").port(80, 8081).says("home to $remote_addr"))?;
        for flag in ["-4", "-6"] {
            let answer = mesh.friend.curl(&[flag], "http://home/")?;
            let from_home = ["home to 127.0.0.1\n", "home to ::1\n"].contains(&&*answer.body);
            ensure!(answer.http == 200 && from_home, "{flag}: {answer:?}");
        }
        // What listens on a pod's own loopback is the pod's.
        let _own = mesh.friend.nginx(&Nginx::service("own").port(80, 8081).says("own"))?;
        let answer = mesh.friend.curl(&[], "http://127.0.0.1:8081/")?;
        ensure!(answer.body == "own\n", "{answer:?}");
        Ok(())
    });
}

#[test]
fn an_undeclared_port_of_another_namespace_is_that_workloads() {
    lab_test("pods-undeclared", |lab| {
        let mesh = Mesh::new(lab)?;
        let traffic = lab.traffic()?;
        mesh.tcp_rule()?;
        mesh.denied_to_stranger()?;
        // All listen on the same port of all their addresses: at home, in the pod that is dialled, in the one that dials.
        let serve = [&*traffic, "serve-echo", "[::]:9000"];
        let mut servers = [
            lab.run("home").start(serve)?,
            mesh.web.start(serve)?,
            mesh.stranger.start(serve)?,
        ];
        for server in &mut servers {
            server.line(1)?;
        }
        let mut stranger = Client::new(lab, &mesh.stranger)?;
        for target in ["10.88.0.1", "[fd88::1]", "10.88.0.3", "[fd88::3]"] {
            let result = stranger.connect(&format!("{target}:9000"))?;
            ensure!(result == Err(EPERM), "{target}: {result:?}");
        }
        for target in ["10.88.0.4", "[fd88::4]", "127.0.0.1"] {
            let result = stranger.connect(&format!("{target}:9000"))?;
            ensure!(result.is_ok(), "itself at {target}: {result:?}");
        }
        Ok(())
    });
}

#[test]
fn datagrams_between_pods_are_judged_once_and_by_account() {
    lab_test("pods-udp", |lab| {
        let mesh = Mesh::new(lab)?;
        let traffic = lab.traffic()?;
        let mut server = mesh.web.start([&*traffic, "serve-udp-echo", "[::]:9053"])?;
        server.line(1)?;
        let echo = |pod: &Pod<'_>, target: &str| pod.output([&*traffic, "udp-echo", target]);
        for target in ["10.88.0.3:9053", "[fd88::3]:9053"] {
            echo(&mesh.friend, target)?.ok()?;
        }
        let of_friend = |flow: &Value| flow["protocol"] == "udp" && flow["destination"]["account"] == "web";
        let flow = lab.flow("the datagram", of_friend)?;
        ensure!(flow["source"]["account"] == "friend", "{flow}");
        mesh.tcp_rule()?;
        mesh.denied_to_stranger()?;
        let refused = echo(&mesh.stranger, "10.88.0.3:9053")?;
        ensure!(refused.code != 0, "{refused:?}");
        // Events come in order: after this one none of the friend's is to come.
        lab.flow("the refusal", |flow| {
            flow["protocol"] == "udp" && flow["event"] == "deny"
        })?;
        let opened = lab
            .flows()?
            .into_iter()
            .filter(of_friend)
            .filter(|flow| flow["source"]["account"] == "friend");
        let opened: Vec<Value> = opened.collect();
        ensure!(opened.len() == 2, "one a flow, not one a side: {opened:?}");
        Ok(())
    });
}

#[test]
fn killed_and_restarted_pods_keep_their_verdicts_and_get_their_listeners_back() {
    lab_test("pods-death", |lab| {
        let mesh = Mesh::new(lab)?;
        let _nginx = mesh.serve()?;
        mesh.tcp_rule()?;
        mesh.denied_to_stranger()?;
        let web = format!("{}:80", vip(&mesh.friend, "web")?);
        let (mut friend, mut stranger) = (Client::new(lab, &mesh.friend)?, Client::new(lab, &mesh.stranger)?);
        ensure!(
            friend.connect(&web)?.is_ok() && stranger.connect(&web)? == Err(EPERM),
            "before"
        );

        lab.kill9()?;
        ensure!(friend.connect(&web)?.is_ok(), "allowed on L4 connects");
        ensure!(stranger.connect(&web)? == Err(EPERM), "denied is denied");
        ensure!(
            stranger.connect("10.88.0.3:8080")? == Err(EPERM),
            "also at the endpoint"
        );

        mesh.http_rule("/public")?;
        lab.daemon()?;
        let answer = mesh.friend.curl(&[], "http://web/admin")?;
        ensure!(
            answer.http == 403,
            "listeners are inside again, before the daemon is ready: {answer:?}"
        );
        ensure!(mesh.friend.curl(&[], "http://web/public")?.http == 200, "and serve");
        ensure!(
            format!("{}:80", vip(&mesh.friend, "web")?) == web,
            "virtual IPs are stable"
        );

        lab.kill9()?;
        let refused = friend.connect(&web)?;
        ensure!(
            refused == Err(ECONNREFUSED),
            "needs the proxy, which is away: {refused:?}"
        );
        lab.resource("open.yaml", &resources::service_policy("web", &["failureMode: open"]))?;
        lab.daemon()?;
        ensure!(mesh.friend.curl(&[], "http://web/public")?.http == 200, "after");
        lab.kill9()?;
        ensure!(
            friend.connect(&web)?.is_ok(),
            "failureMode open: straight to the endpoint"
        );
        ensure!(
            stranger.connect(&web)? == Err(EPERM),
            "which opens nothing to those whom L4 denies"
        );
        lab.daemon()?;
        Ok(())
    });
}

#[test]
fn a_successor_takes_over_what_listens_in_pods_without_a_gap() {
    lab_test("pods-take-over", |lab| {
        let mesh = Mesh::new(lab)?;
        let _nginx = mesh.serve()?;
        mesh.http_rule("/")?;
        mesh.denied_to_stranger()?;
        let traffic = lab.traffic()?;
        let target = format!("{}:80", vip(&mesh.friend, "web")?);
        let hammering = mesh.friend.start([&*traffic, "hammer", &target, "/"])?;
        lab.take_over(&[])?.ok()?;
        let resolved = mesh.friend.curl(&[], "http://web/public")?;
        ensure!(resolved.http == 200, "{resolved:?}");
        let told = hammering.finish(vm_test::process::BOUND)?.ok()?.json_lines()?;
        let outcomes = told.last().and_then(|told| told["outcomes"].as_object());
        ensure!(outcomes.is_some_and(|outcomes| outcomes.keys().eq(["200"])), "{told:?}");
        Ok(())
    });
}

#[test]
fn a_pod_that_goes_is_left_and_one_that_comes_is_entered() {
    lab_test("pods-gone", |lab| {
        let mesh = Mesh::new(lab)?;
        let _nginx = mesh.serve()?;
        mesh.http_rule("/public")?;
        mesh.denied_to_stranger()?;
        ensure!(mesh.friend.curl(&[], "http://web/public")?.http == 200, "before");
        let links = |suffix: &str| -> Result<usize> {
            let names = fs::read_dir(lab.bpffs().join("links"))?.flatten();
            Ok(names
                .filter(|entry| entry.file_name().to_string_lossy().starts_with(suffix))
                .count())
        };
        ensure!(links("netns-pod-")? == 3, "a program in each pod's namespace");
        let pid = lab.daemon_pid()?;
        let before = descriptors(pid)?;

        let Mesh {
            pods,
            friend,
            web: _web,
            stranger: _stranger,
            ..
        } = mesh;
        let view = |number: u8| -> Result<Value> {
            let status = lab.status()?;
            let name = format!("default/p{number}");
            let workloads = status["workloads"].as_array().context("workloads")?;
            workloads
                .iter()
                .find(|found| found["name"] == *name)
                .cloned()
                .context(name)
        };
        // Its file goes; a process lives on inside.
        let web = format!("{}:80", vip(&friend, "web")?);
        let mut left = Client::new(lab, &friend)?;
        ensure!(left.connect(&web)?.is_ok(), "to the proxy inside");
        drop(friend);
        poll::until("the namespace to be left", || {
            let view = view(2)?;
            ensure!(view["state"] == "pending" && view["cgroup_id"].is_u64(), "{view}");
            Ok(())
        })?;
        ensure!(Pod::is_plugged_in(lab, 2)?, "the process keeps its namespace");
        ensure!(
            left.connect(&web)? == Err(ECONNREFUSED),
            "what needs the proxy is refused"
        );
        ensure!(left.connect("10.88.0.4:9")? == Err(EPERM), "denied is denied");
        ensure!(links("netns-pod-")? == 2, "its link is gone");
        drop(left);
        poll::until("the namespace to end with its last process", || {
            ensure!(!Pod::is_plugged_in(lab, 2)?, "veth2 is there");
            Ok(())
        })?;
        poll::until("the daemon to hold nothing of it", || {
            let now = descriptors(pid)?;
            ensure!(now < before, "{now} descriptors, {before} before");
            Ok(())
        })?;
        let errors = lab.log().lines().filter(|line| line.contains(" ERROR ")).count();
        ensure!(errors == 0, "{}", lab.log());

        // And comes back, another namespace by the same name.
        let friend = pods.pod(2)?;
        poll::until("the new pod to be captured", || {
            let view = view(2)?;
            ensure!(view["state"] == "captured", "{view}");
            Ok(())
        })?;
        let answer = friend.curl(&[], "http://web/public")?;
        ensure!(
            answer.http == 200,
            "captured means that our servers are in it: {answer:?}"
        );
        ensure!(friend.curl(&[], "http://web/admin")?.http == 403, "judged inside");
        Ok(())
    });
}

#[test]
fn what_cannot_be_captured_says_why() {
    lab_test("pods-wrong", |lab| {
        let pods = Pods::new(lab)?;
        let pod = pods.pod(2)?;
        let capture = |name: &str, cgroup: &str, netns: &Path| {
            format!(
                "---\napiVersion: weft.mesh/v1alpha1\nkind: Workload\nmetadata: {{name: {name}, namespace: default}}\n\
                 spec: {{capture: {{cgroup: {cgroup}, netns: {}}}}}\n",
                netns.display()
            )
        };
        let yaml = [
            capture("a-good", "pods/p2", &pod.path()),
            capture("b-twice", "pods/p2", &pod.path()),
            capture("c-elsewhere", "/sys/fs/cgroup/elsewhere", &pod.path()),
            capture("d-daemon", ".daemon", &pod.path()),
            capture("d-canary", ".canary/client", &pod.path()),
            capture("e-none", "pods/none", &pod.path()),
            capture("f-file", "pods/p2/app", Path::new("/etc/hostname")),
        ];
        lab.resource("pods.yaml", &yaml.concat())?;
        lab.daemon()?;
        let text = lab.weft(["status"])?.ok()?.stdout;
        for (name, reason) in [
            ("b-twice", "it is the cgroup of workload default/a-good"),
            ("c-elsewhere", "it is not below the captured cgroup"),
            ("d-daemon", "it is the daemon's own"),
            ("d-canary", "it is the daemon's own"),
            ("e-none", "there is no such cgroup"),
            ("f-file", "it is no network namespace"),
        ] {
            let said = text
                .lines()
                .find(|line| line.contains(&format!("Workload default/{name}:")));
            let said = said.with_context(|| format!("nothing about {name} in\n{text}"))?;
            ensure!(said.contains(reason), "{said}");
        }
        // Something else has our port inside: said, and put right once it is free.
        let taken = pods.pod(3)?;
        let traffic = lab.traffic()?;
        let words = [&*traffic, "serve-echo", "127.0.0.1:15001"].map(str::to_owned);
        let mut holder = Running::start(lab.command(taken.enter().into_iter().chain(words)))?;
        holder.line(1)?;
        lab.resource("taken.yaml", &taken.workload("taken", "taken"))?;
        let state = || -> Result<Value> {
            let status = lab.status()?;
            let workloads = status["workloads"].as_array().context("workloads")?;
            let found = workloads.iter().find(|found| found["name"] == "default/p3");
            Ok(found.context("default/p3")?["state"].clone())
        };
        poll::until("the taken port to be said", || {
            let text = lab.weft(["status"])?.ok()?.stdout;
            ensure!(text.contains("listen on port 15001") && state()? == "pending", "{text}");
            Ok(())
        })?;
        holder.kill();
        poll::until("the pod to be entered", || {
            ensure!(state()? == "captured", "{}", state()?);
            Ok(())
        })
    });
}

#[test]
fn what_listened_before_it_was_captured_is_named_until_it_is_started_again() {
    lab_test("pods-late", |lab| {
        let pods = Pods::new(lab)?;
        let web = pods.pod(3)?;
        lab.daemon()?;
        let traffic = lab.traffic()?;
        let serve = || -> Result<Running> {
            let mut server = web.start([traffic.as_str(), "serve-echo", "[::]:8080"])?;
            server.line(1)?;
            Ok(server)
        };
        let early = serve()?;
        lab.apply(&(resources::DENY.to_owned() + &web.workload("web", "web")))?;
        let named = || -> Result<(bool, bool)> {
            let is_named = |all: &Value| {
                let mut all = all
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|one| one["what"].as_str());
                all.any(|what| what.contains("default/p3") && what.contains(":8080/tcp"))
            };
            let doctor = lab.weft(["doctor", "-o", "json"])?.json()?;
            Ok((is_named(&lab.status()?["degraded"]), is_named(&doctor["problems"])))
        };
        poll::until("its listener to be named", || {
            ensure!(named()? == (true, true), "status, doctor: {:?}", named()?);
            Ok(())
        })?;
        let logged = || lab.log().matches("since before it was captured").count();
        poll::until("the log to say so", || {
            ensure!(logged() == 1, "{} times", logged());
            Ok(())
        })?;
        early.stop()?;
        let _again = serve()?;
        ensure!(named()? == (false, false), "it is known now");
        ensure!(logged() == 1, "once");
        Ok(())
    });
}

#[test]
fn doctor_misses_nothing_of_programs_in_pods_where_the_canary_is_not() {
    lab_test("pods-doctor", |lab| {
        let _mesh = Mesh::new(lab)?;
        poll::until("doctor to know the programs of three pods", || {
            let doctor = lab.weft(["doctor", "-o", "json"])?.json()?;
            let of_pods = |what: &str, name: &str| -> usize {
                let all = doctor[what].as_array().into_iter().flatten();
                let names = all.filter_map(|one| one[name].as_str());
                names.filter(|name| name.starts_with("weft_sk_lookup@")).count()
            };
            ensure!(
                (of_pods("hooks", "name"), of_pods("problems", "what")) == (3, 0),
                "{doctor:#}"
            );
            Ok(())
        })
    });
}

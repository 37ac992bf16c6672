//! Access rules, per request.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, StatusCode, header::WWW_AUTHENTICATE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use weft_adapters::{
    Bag, Check, CheckResult, Checking, Deny, Directives, FlowVerdict, HeaderOperation, builtin::Denier,
};
use weft_policy::HttpMatch;
use weft_proxy::ProxyConfig;

use crate::support::{
    Access, CLIENT, H1, H2, Mesh, Port, Spec, allow_paths, class_of,
    client::{empty, raw, read_until},
    closed_but_for,
    server::{Server, text},
};

#[tokio::test]
async fn a_denied_request_names_caller_called_and_rule() {
    let server = Server::named("web").await;
    let spec = Spec::of([Port::http("web", [server.address])]).with_access(Access::Nobody);
    let mut mesh = Mesh::start(&spec);
    let answer = H1::new(mesh.dial(0).await).await.get("/admin").await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert_eq!(answer.header("content-type"), Some("text/plain"));
    assert_eq!(answer.header("x-weft-denied-by"), Some("MeshConfig mesh"));
    assert_eq!(
        answer.body,
        "weft: GET /admin from default/client to default/web denied: no TrafficTarget allows it (MeshConfig mesh: \
         accessDefault deny)\n"
    );
    let flow = mesh.flow().await;
    assert_eq!(flow.verdict, FlowVerdict::Deny);
    assert_eq!(flow.rule.as_ref().unwrap().to_string(), "MeshConfig mesh");
    assert_eq!(flow.l7.as_ref().unwrap().status, 403);
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_policy_change_acts_on_the_next_request_of_a_running_connection() {
    let server = Server::named("web").await;
    let open = Spec::of([Port::http("web", [server.address])]);
    let mesh = Mesh::start(&open);
    let mut client = H1::new(mesh.dial(0).await).await;
    assert_eq!(client.get("/admin").await.status, StatusCode::OK);
    mesh.publish(&open.clone().with_access(allow_paths("/public")));
    assert_eq!(client.get("/admin").await.status, StatusCode::FORBIDDEN);
    assert_eq!(client.get("/public").await.status, StatusCode::OK);
    mesh.publish(&open);
    assert_eq!(client.get("/admin").await.status, StatusCode::OK);
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_network_policy_that_comes_acts_on_the_next_request_of_a_running_connection() {
    let server = Server::named("web").await;
    let mut spec = Spec::of([Port::http("web", [server.address])]);
    let mesh = Mesh::start(&spec);
    let mut client = H1::new(mesh.dial(0).await).await;
    for _ in 0..2 {
        assert_eq!(client.get("/").await.status, StatusCode::OK);
    }
    spec.isolation = Some(closed_but_for([]));
    mesh.publish(&spec);
    assert_eq!(client.get("/").await.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn network_and_access_must_both_allow_a_request() {
    let server = Server::named("web").await;
    let mut spec = Spec::of([Port::http("web", [server.address])]);
    spec.isolation = Some(closed_but_for([]));
    let mut mesh = Mesh::start(&spec);
    let mut client = H1::new(mesh.dial(0).await).await;
    let answer = client.get("/").await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert_eq!(answer.header("x-weft-denied-by"), Some("NetworkPolicy default/closed"));
    assert_eq!(
        answer.body,
        "weft: GET / from default/client to default/web denied: no NetworkPolicy allows it (NetworkPolicy \
         default/closed isolates)\n"
    );
    assert_eq!(mesh.flow().await.verdict, FlowVerdict::Deny);
    // Labels decide on the next request, not on the next connection.
    spec.isolation = Some(closed_but_for([class_of(CLIENT)]));
    mesh.publish(&spec);
    assert_eq!(client.get("/").await.status, StatusCode::OK);
    mesh.publish(&spec.clone().with_access(Access::Nobody));
    let answer = client.get("/").await;
    assert_eq!(answer.header("x-weft-denied-by"), Some("MeshConfig mesh"));
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn an_audited_denial_is_answered_and_reported() {
    let server = Server::named("web").await;
    let mut spec = Spec::of([Port::http("web", [server.address])]).with_access(allow_paths("/public"));
    spec.audit = true;
    let mut mesh = Mesh::start(&spec);
    let mut client = H1::new(mesh.dial(0).await).await;
    assert_eq!(client.get("/public").await.status, StatusCode::OK);
    assert_eq!(mesh.flow().await.verdict, FlowVerdict::Allow);
    // Also where only one reading of the path would be denied.
    for path in ["/admin", "/public/../admin"] {
        assert_eq!(client.get(path).await.status, StatusCode::OK);
        let flow = mesh.flow().await;
        assert_eq!(flow.verdict, FlowVerdict::Audit, "{path}");
        assert_eq!(flow.rule.as_ref().unwrap().to_string(), "TrafficTarget default/target");
        assert_eq!(
            flow.reason,
            "let through and reported (audit): TrafficTarget default/target allows other requests only"
        );
        assert_eq!(flow.l7.as_ref().unwrap().status, 200);
    }
    // One dimension under audit lets nothing through that the other denies.
    spec.isolation = Some(closed_but_for([]));
    mesh.publish(&spec);
    assert_eq!(client.get("/admin").await.status, StatusCode::FORBIDDEN);
    assert_eq!(mesh.flow().await.verdict, FlowVerdict::Deny);
}

#[tokio::test]
async fn dialling_the_endpoint_itself_meets_the_same_verdict() {
    let server = Server::named("web").await;
    let spec = Spec::of([Port::http("web", [server.address])]).with_access(allow_paths("/public"));
    let mesh = Mesh::start(&spec);
    let mut client = H1::new(mesh.dial_original(server.address).await).await;
    assert_eq!(client.get("/public").await.body, "web");
    assert_eq!(client.get("/admin").await.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_port_that_no_service_declares_meets_the_workloads_rules() {
    let (declared, hidden) = (Server::named("web").await, Server::named("hidden").await);
    let mut spec = Spec::of([Port::http("web", [declared.address])]).with_access(allow_paths("/public"));
    spec.listening.push((hidden.address, "web"));
    let mesh = Mesh::start(&spec);
    let mut client = H1::new(mesh.dial_original(hidden.address).await).await;
    assert_eq!(client.get("/public").await.body, "hidden");
    assert_eq!(client.get("/admin").await.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_path_that_a_server_may_read_otherwise_must_be_allowed_both_ways() {
    let server = Server::http1(|request| async move { text(request.uri().path().to_owned()) }).await;
    let spec = Spec::of([Port::http("web", [server.address])]).with_access(allow_paths("/public"));
    let mesh = Mesh::start(&spec);
    for (path, expect) in [
        ("/public/../admin", "403"),
        ("/public/..%2fadmin", "403"),
        ("/public/%2e%2e/admin", "403"),
        ("/admin/../public", "403"),
        ("/public/..;/admin", "403"),
        ("/public/..;a=b/admin", "403"),
        ("/public/x;a=b", "200"),
        ("/public/./a%20b", "200"),
    ] {
        let answer = raw(
            mesh.dial(0).await,
            &format!("GET {path} HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n"),
        )
        .await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expect} ")), "{path}: {answer}");
        if expect == "200" {
            assert!(answer.ends_with(path), "the path itself is not changed: {answer}");
        }
    }
}

#[tokio::test]
async fn a_client_that_is_refused_amid_a_large_upload_reads_the_refusal() {
    const LENGTH: u64 = 16 << 20;
    let server = Server::named("web").await;
    let spec = Spec::of([Port::http("web", [server.address])]).with_access(Access::Nobody);
    let mesh = Mesh::start(&spec);
    let (mut reader, mut writer) = mesh.dial(0).await.into_split();
    let write = async move {
        let head = format!("POST / HTTP/1.1\r\nhost: web\r\ncontent-length: {LENGTH}\r\n\r\n");
        writer.write_all(head.as_bytes()).await.unwrap();
        let piece = vec![0; 1 << 20];
        for _ in 0..LENGTH >> 20 {
            writer.write_all(&piece).await.unwrap();
        }
        // The connection is still good for another request.
        let next = "GET /again HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n";
        writer.write_all(next.as_bytes()).await.unwrap();
        writer
    };
    let read = async move {
        let mut answer = String::new();
        reader.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let (_writer, answer) = tokio::join!(write, read);
    assert_eq!(answer.matches("HTTP/1.1 403 ").count(), 2, "{answer}");
}

#[tokio::test]
async fn an_adapters_deny_names_the_adapter_and_its_directives_are_carried_out() {
    const KEY: HeaderName = HeaderName::from_static("x-key");
    const CHECKED: HeaderName = HeaderName::from_static("x-checked");

    struct Closed;

    impl Check for Closed {
        fn name(&self) -> &str {
            "closed"
        }
        fn check<'a>(&'a self, bag: &'a Bag<'_>) -> Checking<'a> {
            match bag.header("x-key") {
                Some("open") => Checking::Ready(CheckResult::AllowWith(Box::new(Directives {
                    request: vec![HeaderOperation::Remove(KEY)],
                    response: vec![HeaderOperation::Append(CHECKED, HeaderValue::from_static("yes"))],
                }))),
                _ => Checking::deny(
                    Deny::new(401, "no key").with_header(WWW_AUTHENTICATE, HeaderValue::from_static("Key")),
                ),
            }
        }
    }

    let server = Server::http1(async |request| {
        text(if request.headers().contains_key(KEY) {
            "the key"
        } else {
            "web"
        })
    })
    .await;
    let spec = Spec::of([Port::http("web", [server.address])]);
    let mesh = Mesh::start_with(&spec, ProxyConfig::default(), vec![Arc::new(Closed)]);
    let answer = H1::new(mesh.dial(0).await).await.get("/").await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(answer.header("x-weft-denied-by"), Some("Adapter closed"));
    assert_eq!(answer.header("www-authenticate"), Some("Key"));
    assert!(answer.body.contains("no key (adapter closed"), "{}", answer.body);
    let keyed = "GET / HTTP/1.1\r\nhost: web\r\nx-key: open\r\nconnection: close\r\n\r\n";
    let answer = raw(mesh.dial(0).await, keyed).await;
    assert!(answer.ends_with("\r\n\r\nweb"), "{answer}");
    assert!(answer.contains("x-checked: yes\r\n"), "{answer}");
}

#[tokio::test]
async fn what_an_adapter_sets_the_client_cannot_have_removed() {
    const USER: HeaderName = HeaderName::from_static("x-user");

    struct Identify;

    impl Check for Identify {
        fn name(&self) -> &str {
            "identify"
        }
        fn check<'a>(&'a self, bag: &'a Bag<'_>) -> Checking<'a> {
            // What goes no further is not there for adapters either.
            if bag.header("x-only-here").is_some() {
                return Checking::deny(Deny::new(500, "it was seen"));
            }
            Checking::Ready(CheckResult::AllowWith(Box::new(Directives {
                request: vec![HeaderOperation::Replace(USER, HeaderValue::from_static("ann"))],
                response: Vec::new(),
            })))
        }
    }

    let server = Server::http1(|request| async move { text(format!("{:?}", request.headers().get(USER))) }).await;
    let spec = Spec::of([Port::http("web", [server.address])]);
    let mesh = Mesh::start_with(&spec, ProxyConfig::default(), vec![Arc::new(Identify)]);
    for listed in ["close", "close, x-user", "X-User, close, x-only-here"] {
        let ask = format!(
            "GET / HTTP/1.1\r\nhost: web\r\nx-user: eve\r\nx-only-here: 1\r\nconnection: {listed}, x-only-here\r\n\r\n"
        );
        let answer = raw(mesh.dial(0).await, &ask).await;
        assert!(answer.ends_with("\r\n\r\nSome(\"ann\")"), "{listed}: {answer}");
    }
}

#[tokio::test]
async fn rules_and_adapters_see_the_host_that_the_endpoint_gets() {
    let [one, two] = [
        Server::http1(|request| async move { text(request.headers()["host"].as_bytes().to_vec()) }).await,
        Server::http2(|request| async move { text(request.uri().authority().unwrap().to_string()) }).await,
    ];
    let config = serde_json::json!({"match": {"header": {"name": "host", "value": "admin"}}});
    let denier = || Denier::new("no-admin", serde_json::from_value(config.clone()).unwrap(), None).unwrap();
    let mut spec = Spec::of([Port::http("web", [one.address]), Port::http("api", [two.address])]);
    let mesh = Mesh::start_with(&spec, ProxyConfig::default(), vec![Arc::new(denier())]);
    let absolute = |host: &str, header: &str| {
        format!("GET http://{host}/ HTTP/1.1\r\nhost: {header}\r\nconnection: close\r\n\r\n")
    };
    let answer = raw(mesh.dial(0).await, &absolute("admin", "public")).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    let answer = raw(mesh.dial(0).await, &absolute("public", "admin")).await;
    assert!(answer.ends_with("\r\n\r\npublic"), "{answer}");
    for (host, expect) in [("admin", 403), ("public", 200)] {
        let ask = http::Request::get(format!("http://{host}/")).body(empty()).unwrap();
        let answer = H2::new(mesh.dial(1).await).await.send(ask).await;
        assert_eq!(answer.status().as_u16(), expect, "{host}");
    }
    // The same for rules.
    spec.access = Access::Matching(vec![HttpMatch {
        name: "host".into(),
        methods: Vec::new(),
        path: None,
        headers: vec![("host".into(), regex::Regex::new("^public$").unwrap())],
    }]);
    let mesh = Mesh::start(&spec);
    for (host, header, expect) in [("admin", "public", "403"), ("public", "admin", "200")] {
        let answer = raw(mesh.dial(0).await, &absolute(host, header)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expect} ")), "{host}: {answer}");
    }
}

#[tokio::test]
async fn a_rule_about_a_header_holds_for_all_its_lines() {
    let server = Server::named("web").await;
    let mut spec = Spec::of([Port::http("web", [server.address])]);
    spec.access = Access::Matching(vec![HttpMatch {
        name: "tenant".into(),
        methods: Vec::new(),
        path: None,
        headers: vec![("x-tenant".into(), regex::Regex::new("^a$").unwrap())],
    }]);
    let mesh = Mesh::start(&spec);
    // By the short way, and by hyper.
    for connection in ["keep-alive", "close"] {
        for (lines, expect) in [
            ("x-tenant: a\r\n", "200"),
            ("x-tenant: a\r\nx-tenant: a\r\n", "200"),
            ("x-tenant: a\r\nx-tenant: b\r\n", "403"),
            ("x-tenant: b\r\nX-Tenant: a\r\n", "403"),
            ("", "403"),
        ] {
            let ask = format!("GET / HTTP/1.1\r\nhost: web\r\n{lines}connection: {connection}\r\n\r\n");
            let mut stream = mesh.dial(0).await;
            stream.write_all(ask.as_bytes()).await.unwrap();
            let answer = read_until(&mut stream, "\r\n\r\n").await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {expect} ")),
                "{connection} {lines:?}: {answer}"
            );
        }
    }
}

#[tokio::test]
async fn adapters_judge_both_readings_of_a_path() {
    let server = Server::named("web").await;
    let spec = Spec::of([Port::http("web", [server.address])]);
    let config = serde_json::from_value(serde_json::json!({"match": {"path_prefix": "/admin"}})).unwrap();
    let denier = Denier::new("no-admin", config, None).unwrap();
    let mesh = Mesh::start_with(&spec, ProxyConfig::default(), vec![Arc::new(denier)]);
    for path in [
        "/admin",
        "/admin/x",
        "//admin",
        "/%61dmin",
        "/x/../admin",
        "/x%2f..%2fadmin?a=b",
        "/x/..;/admin",
        "/;x/admin",
    ] {
        let answer = raw(
            mesh.dial(0).await,
            &format!("GET {path} HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n"),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{path}: {answer}");
    }
    let answer = H1::new(mesh.dial(0).await).await.get("/x/..%2fpublic").await;
    assert_eq!(answer.status, StatusCode::OK);
}

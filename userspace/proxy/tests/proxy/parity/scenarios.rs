//! What is asked of which filters.

/// Filters, and requests to them one after the other.
pub struct Scenario {
    pub name: &'static str,
    /// Module and configuration, in order.
    pub filters: &'static [(&'static str, &'static str)],
    pub asks: &'static [Ask],
}

/// A request, and the status it is to have.
#[derive(Debug)]
pub struct Ask {
    pub method: &'static str,
    pub path: &'static str,
    pub headers: &'static [(&'static str, &'static str)],
    pub body: &'static str,
    pub expect: u16,
}

const AUTH: (&str, &str) = ("header-auth", r#"{"tokens": {"s3cret": "alice"}}"#);
const TOKEN: (&str, &str) = ("authorization", "Bearer s3cret");
const REWRITE: (&str, &str) = (
    "body-rewrite",
    r#"{"requests": [{"from": "cat", "to": "tiger"}], "responses": [{"from": "sat", "to": "slept soundly"}]}"#,
);
const DENY: (&str, &str) = ("deny-path", r#"{"prefixes": ["/admin"]}"#);
const CALL: (&str, &str) = (
    "call-out",
    r#"{"upstream": "oracle", "path": "/check", "timeout_ms": 60000,
        "ask_headers": ["authorization"], "answer_headers": ["x-user"]}"#,
);
/// One token in 17 minutes.
const LIMIT: (&str, &str) = ("rate-limit", r#"{"rate": 0.001, "burst": 2}"#);

const fn get(path: &'static str, headers: &'static [(&'static str, &'static str)], expect: u16) -> Ask {
    Ask {
        method: "GET",
        path,
        headers,
        body: "",
        expect,
    }
}

const fn post(body: &'static str, headers: &'static [(&'static str, &'static str)], expect: u16) -> Ask {
    Ask {
        method: "POST",
        path: "/items?of=cat",
        headers,
        body,
        expect,
    }
}

const fn head(headers: &'static [(&'static str, &'static str)], expect: u16) -> Ask {
    Ask {
        method: "HEAD",
        path: "/",
        headers,
        body: "",
        expect,
    }
}

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a header decides",
        filters: &[AUTH],
        asks: &[
            get("/", &[], 401),
            get("/", &[("authorization", "Bearer wrong")], 403),
            get("/", &[("authorization", "Basic s3cret")], 403),
            get("/a?b=c", &[TOKEN, ("x-user", "root")], 200),
            post("body", &[TOKEN], 200),
            post("body", &[], 401),
            head(&[TOKEN], 200),
            head(&[], 401),
            get("/", &[TOKEN, ("x-want", "204")], 204),
            get("/", &[TOKEN, ("x-want", "503")], 503),
        ],
    },
    Scenario {
        name: "bodies are replaced",
        filters: &[REWRITE],
        asks: &[
            post("the cat sat on the cat", &[], 200),
            post("nothing to do", &[], 200),
            get("/sat", &[], 200),
            head(&[], 200),
            get("/", &[("x-want", "304")], 304),
        ],
    },
    Scenario {
        name: "AssemblyScript denies paths",
        filters: &[DENY],
        asks: &[
            get("/admin/users", &[], 403),
            get("/public", &[], 200),
            post("body", &[], 200),
            head(&[], 200),
        ],
    },
    Scenario {
        name: "a service is asked",
        filters: &[CALL],
        asks: &[
            get("/", &[("authorization", "good"), ("x-user", "root")], 200),
            get("/", &[("authorization", "bad")], 403),
            post("body that waits", &[("authorization", "good")], 200),
            post("body that waits", &[], 403),
        ],
    },
    Scenario {
        name: "nobody can be asked",
        filters: &[("call-out", r#"{"upstream": "nobody"}"#)],
        asks: &[get("/", &[], 403)],
    },
    Scenario {
        name: "requests are counted",
        filters: &[LIMIT],
        asks: &[
            get("/", &[], 200),
            get("/", &[], 200),
            get("/", &[], 429),
            get("/", &[], 429),
        ],
    },
    Scenario {
        name: "filters are met in order, answers in reverse",
        filters: &[AUTH, DENY, REWRITE],
        asks: &[
            get("/admin", &[], 401),
            get("/admin", &[TOKEN], 403),
            post("the cat sat", &[TOKEN], 200),
        ],
    },
];

/// A filter of bytes: it waits for four of them, closes what begins with `HEAD`, and marks what else comes from either side.
pub const BYTES: &str = r#"(module
  (import "env" "proxy_get_buffer_bytes" (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_set_buffer_bytes" (func $set (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_close_stream" (func $close (param i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "[in]" "[out]")
  (func (export "proxy_abi_version_0_2_0"))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func (export "proxy_on_new_connection") (param i32) (result i32) (i32.const 0))
  (func (export "proxy_on_downstream_data") (param $context i32) (param $length i32) (param $end i32) (result i32)
    (if (i32.and (i32.lt_u (local.get $length) (i32.const 4)) (i32.eqz (local.get $end)))
      (then (return (i32.const 1))))
    (if (i32.ge_u (local.get $length) (i32.const 4)) (then
      (drop (call $get (i32.const 2) (i32.const 0) (i32.const 4) (i32.const 512) (i32.const 516)))
      (if (i32.eq (i32.load (i32.load (i32.const 512))) (i32.const 0x44414548)) (then
        (drop (call $close (i32.const 2)))
        (return (i32.const 1))))))
    (if (local.get $length)
      (then (drop (call $set (i32.const 2) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 4)))))
    (i32.const 0))
  (func (export "proxy_on_upstream_data") (param $context i32) (param $length i32) (param $end i32) (result i32)
    (if (local.get $length)
      (then (drop (call $set (i32.const 3) (local.get $length) (i32.const 0) (i32.const 4) (i32.const 5)))))
    (i32.const 0)))"#;

/// What a client says to it, and what it hears.
pub const BYTES_SAID: &[(&str, &str)] = &[
    ("hello", "heard [in]hello[out]"),
    ("four", "heard [in]four[out]"),
    ("two", "heard [in]two[out]"),
    ("", "heard [out]"),
    ("HEAD / HTTP/1.1\r\n\r\n", ""),
    ("HEA", "heard [in]HEA[out]"),
];

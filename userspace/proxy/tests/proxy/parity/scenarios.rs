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

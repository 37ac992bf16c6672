//! Heads in callbacks after they have passed on.

use super::*;

/// Sets `x-user` of the request, and later finds it, what else was sent, and the answer's `server`; traps where it does not. What it
/// changes when all has passed it finds itself.
const LATER: &str = r#"(module
  (import "env" "proxy_get_header_map_value" (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_header_map_size" (func $size (param i32 i32) (result i32)))
  (import "env" "proxy_replace_header_map_value" (func $replace (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_define_metric" (func $define (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_increment_metric" (func $increment (param i32 i64) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "x-user" "me" "accept" "server" "found")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func $ok (param i32) (if (local.get 0) (then unreachable)))
  ;; Map, name of six bytes, first byte of its value.
  (func $is (param i32 i32 i32)
    (call $ok (call $get (local.get 0) (local.get 1) (i32.const 6) (i32.const 0) (i32.const 4)))
    (if (i32.ne (i32.load8_u (i32.load (i32.const 0))) (local.get 2)) (then unreachable)))
  (func $request
    (call $is (i32.const 0) (i32.const 16) (i32.const 109))
    (call $is (i32.const 0) (i32.const 24) (i32.const 42))
    (call $ok (call $size (i32.const 0) (i32.const 8)))
    ;; :authority cart :path / :method GET :scheme http accept * x-user me
    (if (i32.ne (i32.load (i32.const 8)) (i32.const 56)) (then unreachable)))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32)
    (call $ok (call $define (i32.const 0) (i32.const 36) (i32.const 5) (i32.const 512)))
    (i32.const 1))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $replace (i32.const 0) (i32.const 16) (i32.const 6) (i32.const 22) (i32.const 2)))
  (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
    (if (i32.ne (local.get 1) (i32.const 3)) (then unreachable))
    (call $request)
    (call $is (i32.const 2) (i32.const 30) (i32.const 110))
    (i32.const 0))
  (func (export "proxy_on_done") (param i32) (result i32) (call $request) (i32.const 1))
  (func (export "proxy_on_log") (param i32)
    (call $request)
    (call $is (i32.const 2) (i32.const 30) (i32.const 110))
    (call $ok (call $replace (i32.const 0) (i32.const 24) (i32.const 6) (i32.const 22) (i32.const 2)))
    (call $is (i32.const 0) (i32.const 24) (i32.const 109))
    (call $ok (call $replace (i32.const 2) (i32.const 30) (i32.const 6) (i32.const 22) (i32.const 2)))
    (call $is (i32.const 2) (i32.const 30) (i32.const 109))
    (call $ok (call $increment (i32.load (i32.const 512)) (i64.const 1)))))"#;

#[test]
fn heads_that_have_passed_are_there_to_the_end() {
    let module = Module::compile(&text(LATER)).expect("a filter");
    let lines = [(&b"Server"[..], &b"nginx"[..]), (b"etag", b"1")];
    let lines = HeaderSection::Text(HeaderLines::of(lines.into_iter(), 0, 0));
    for headers in [lines.clone(), HeaderSection::Map(lines.into_map())] {
        let plugin = plugin(&module, config(""));
        let mut filter = stream(&plugin);
        let sent = [("accept", "*"), ("x-user", "root")];
        if matches!(headers, HeaderSection::Text(_)) {
            let mut head = get_text("/", &sent);
            goes_on(filter.on_request_head(&mut head, true));
            assert_eq!(head.headers.find(b"x-user"), Some(&b"me"[..]));
            // As the proxy goes on with it.
            head.headers.map_mut().clear();
        } else {
            let mut head = get("/", &sent);
            goes_on(filter.on_request_headers(&mut head, true));
            assert_eq!(head.headers["x-user"], "me");
            head.headers.clear();
        }
        let was_text = matches!(headers, HeaderSection::Text(_));
        let status = http::StatusCode::NOT_FOUND;
        let mut answer = ResponseHead { status, headers };
        goes_on(filter.on_response_headers(&mut answer, true));
        assert_eq!(answer.status, status);
        assert_eq!(answer.headers.find(b"server"), Some(&b"nginx"[..]));
        assert_eq!(
            matches!(answer.headers, HeaderSection::Text(_)),
            was_text,
            "nobody has changed it"
        );
        answer.headers.map_mut().clear();
        filter.on_end(&end());
        assert_eq!((beside::metric(&plugin, "found"), plugin.stats().traps), (1, 0));
    }
}

#[test]
fn what_a_filter_adds_to_a_head_is_bounded() {
    // So often a value of 64 KiB.
    let bytes = text(
        r#"(module
             (import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))
             (memory (export "memory") 2) (func (export "proxy_abi_version_0_2_1"))
             (data (i32.const 0) "x")
             (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (local $more i32)
               (memory.fill (i32.const 16) (i32.const 118) (i32.const 65536))
               (local.set $more (i32.const 100))
               (loop $add
                 (drop (call $add (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16) (i32.const 65536)))
                 (br_if $add (local.tee $more (i32.sub (local.get $more) (i32.const 1)))))
               (i32.const 0)))"#,
    );
    let slow = PluginConfig {
        limits: Limits {
            deadline: Duration::from_secs(5),
            ..Limits::default()
        },
        ..config("")
    };
    let plugin = plugin(&Module::compile(&bytes).expect("a filter"), slow);
    let mut head = get("/", &[]);
    goes_on(stream(&plugin).on_request_headers(&mut head, true));
    let added = head.headers.get_all("x").iter().count();
    assert_eq!((added, plugin.stats().unfit_headers), (15, 85));
}

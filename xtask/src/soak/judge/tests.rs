use vm_test::soak::Flow;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn stream(account: Account, path: Path, kind: Kind) -> Stream {
    let target = ([127, 0, 0, 1], 7).into();
    let flow = Flow {
        kind,
        target,
        every_ms: 1,
        bytes: 1,
        patience_ms: 1,
        tell_all: true,
    };
    Stream {
        host: 0,
        account,
        service: "echo".into(),
        path,
        past_tcp: false,
        outside: false,
        flow,
    }
}

/// Host 0 denies from 10 s to 20 s, each change taking 50 ms; its daemon is killed at 30 s and back at 31 s; from 40 s to 45 s
/// it is taken over.
fn judge() -> Judge {
    let mut judge = Judge::new(0);
    for (start, allows) in [(10 * SECOND, false), (20 * SECOND, true)] {
        judge.hosts[0].timeline.begin(start, allows);
        judge.hosts[0].timeline.end(End::At(start + SECOND / 20));
    }
    judge.hosts[0].troubles = vec![
        Trouble {
            kind: TroubleKind::Killed,
            start: 30 * SECOND,
            end: Some(31 * SECOND),
        },
        Trouble {
            kind: TroubleKind::TakenOver,
            start: 40 * SECOND,
            end: Some(45 * SECOND),
        },
    ];
    judge
}

const FAILED: Outcome = Outcome::Errno(EPERM);

/// What is wrong about one attempt of a tenth of a second.
fn attempt(stream: &Stream, start: u64, connected: bool, outcome: Outcome) -> Wrong {
    let mut judge = judge();
    let told = Told::Attempt {
        flow: 0,
        start,
        end: start + SECOND / 10,
        connected,
        outcome,
    };
    judge.take(std::slice::from_ref(stream), &told);
    judge.wrong
}

fn session(stream: &Stream, opened: u64, last_ok: u64, at: Option<u64>) -> Judge {
    let mut judge = judge();
    let ended = at.map(|at| Ended {
        at,
        outcome: Outcome::Errno(104),
    });
    judge.take(
        std::slice::from_ref(stream),
        &Told::Session {
            flow: 0,
            opened,
            last_ok,
            ended,
        },
    );
    judge
}

#[test]
fn a_verdict_must_fit_a_policy_that_may_have_been_in_force() {
    let right = Wrong::default();
    let let_through = Wrong {
        let_through: 1,
        ..right
    };
    let denied = Wrong { denied: 1, ..right };
    let flapper = stream(Account::Flapper, Path::Direct, Kind::Short);
    for (start, outcome, expect) in [
        (5 * SECOND, Outcome::Ok, right),
        (5 * SECOND, FAILED, denied),
        (10 * SECOND - 1, Outcome::Ok, right),
        (10 * SECOND, FAILED, right),
        (15 * SECOND, Outcome::Ok, let_through),
        (15 * SECOND, FAILED, right),
        (20 * SECOND, Outcome::Ok, right),
        (25 * SECOND, FAILED, denied),
        (25 * SECOND, Outcome::Wrong(3), Wrong { bytes: 1, ..right }),
    ] {
        assert_eq!(
            attempt(&flapper, start, outcome == Outcome::Ok, outcome),
            expect,
            "{start} {outcome:?}"
        );
    }
    assert_eq!(
        attempt(&flapper, 15 * SECOND, true, Outcome::Closed),
        let_through,
        "it was connected"
    );
    let silent = attempt(&flapper, 15 * SECOND, false, Outcome::Lost);
    assert_eq!(silent, Wrong { manner: 1, ..right }, "silence is no answer in the mesh");
    let stranger = stream(Account::Stranger, Path::Direct, Kind::Short);
    assert_eq!(attempt(&stranger, 5 * SECOND, true, Outcome::Ok), let_through);
    assert_eq!(attempt(&stranger, 30 * SECOND, false, FAILED), right);
}

#[test]
fn only_what_needs_the_proxy_may_fail_while_there_is_none() {
    let [direct, proxied] = [Path::Direct, Path::Proxied].map(|path| stream(Account::Friend, path, Kind::Short));
    let denied = Wrong {
        denied: 1,
        ..Wrong::default()
    };
    for (start, connected, expect_direct, expect_proxied) in [
        (29 * SECOND, false, denied, denied),
        (30 * SECOND, false, denied, Wrong::default()),
        (32 * SECOND + SECOND / 2, false, denied, denied),
        (41 * SECOND, false, denied, denied),
        (41 * SECOND, true, denied, Wrong::default()),
    ] {
        assert_eq!(attempt(&direct, start, connected, FAILED), expect_direct, "{start}");
        assert_eq!(attempt(&proxied, start, connected, FAILED), expect_proxied, "{start}");
    }
}

#[test]
fn a_kept_connection_ends_by_a_denial_or_with_its_proxy() {
    let flapper = stream(Account::Flapper, Path::Direct, Kind::Held);
    let friend = stream(Account::Friend, Path::Proxied, Kind::Held);
    let cut = session(&flapper, SECOND, 10 * SECOND, Some(10 * SECOND + SECOND / 10));
    assert_eq!(cut.wrong, Wrong::default());
    let times = cut.cut_times();
    assert_eq!(
        (times.len(), times[0].from_start.max, times[0].from_return.max),
        (1, 100.0, 50.0)
    );
    assert_eq!(session(&flapper, SECOND, 5 * SECOND, Some(6 * SECOND)).wrong.denied, 1);
    assert_eq!(
        session(&flapper, SECOND, 10 * SECOND + SECOND / 5, None).wrong.outlived,
        1
    );
    assert_eq!(session(&friend, SECOND, 5 * SECOND, Some(6 * SECOND)).wrong.denied, 1);
    assert_eq!(
        session(&friend, SECOND, 30 * SECOND, Some(30 * SECOND)).wrong,
        Wrong::default()
    );
    assert_eq!(
        session(&friend, SECOND, 44 * SECOND, Some(45 * SECOND)).wrong,
        Wrong::default()
    );
}

#[test]
fn a_datagram_whose_answer_met_a_change_may_be_lost() {
    let flapper = stream(Account::Flapper, Path::Direct, Kind::Udp);
    let lost = |at: u64| {
        let mut judge = judge();
        let ended = Some(Ended {
            at,
            outcome: Outcome::Lost,
        });
        let told = Told::Session {
            flow: 0,
            opened: SECOND,
            last_ok: at,
            ended,
        };
        judge.take(std::slice::from_ref(&flapper), &told);
        judge.wrong.denied
    };
    assert_eq!(lost(10 * SECOND - ANSWER_NS), 0);
    assert_eq!(lost(10 * SECOND - ANSWER_NS - 1), 1);
}

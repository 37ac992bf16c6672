//! Plays a story with real programs, remembers its flows, and compares what happens with what the judge says.

use std::{cell::RefCell, net::IpAddr};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use vm_test::{Actor, Lab, Running, poll};

use super::{
    naive::{Call, Ruling},
    resources::{name, word, yaml},
    world::{
        ACTORS, Address, HOME, LABELS, Method, NAMESPACES, OFFSETS, OUTSIDER, SERVICE_PORTS, Step, Transport, World,
        account, base,
    },
};

const EPERM: i64 = 1;
const ECONNREFUSED: i64 = 111;

/// The programs, which live as long as the lab: a story leaves no flow behind.
pub struct Stage<'lab> {
    lab: &'lab Lab,
    actors: RefCell<Vec<Actor>>,
    /// IPv4 and IPv6 of each service.
    virtual_ips: Vec<[IpAddr; 2]>,
}

/// A flow that a program holds.
struct Flow {
    id: usize,
    call: Call,
    /// Where its client is, as the server sees it.
    local: String,
    state: State,
    /// Datagrams: who sent the first that was let through, which all others are judged as.
    initiator: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A connection past the proxy.
    Direct,
    /// One whose requests the proxy sees.
    Proxied,
    /// A connection that a policy has denied since it was opened.
    Cut,
    Datagrams,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Client,
    Server,
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    /// A response with this status.
    Status(u64),
    Errno(i64),
    /// The other side ended it.
    Closed,
    /// Nothing came.
    Silence,
}

// === impl Stage ===

impl<'lab> Stage<'lab> {
    /// Starts the programs and waits until each reaches each.
    pub fn new(lab: &'lab Lab) -> Result<Self> {
        let traffic = lab.traffic()?;
        let mut actors = Vec::new();
        for actor in 0..ACTORS {
            let ports = OFFSETS.map(|offset| (base(actor) + offset).to_string());
            let mut run = lab.run(&account(actor)).namespace(NAMESPACES[HOME[actor]]);
            for (service, target) in SERVICE_PORTS.iter().zip(&ports) {
                run = run.port(&format!("{service}:{target}"));
            }
            for (key, value) in LABELS[actor] {
                run = run.label(&format!("{key}={value}"));
            }
            let words = [traffic.clone(), "actor".to_owned()].into_iter().chain(ports);
            actors.push(run.start(words)?);
        }
        actors.push(Running::start(lab.command([traffic, "actor".to_owned()]))?);
        let ready = actors.into_iter().map(Actor::new).collect::<Result<_>>()?;
        let virtual_ips = (0..ACTORS)
            .map(|actor| virtual_ips(lab, actor))
            .collect::<Result<_>>()?;
        Ok(Self {
            lab,
            actors: RefCell::new(ready),
            virtual_ips,
        })
    }

    /// Plays one story to its end.
    ///
    /// # Errors
    /// A verdict is not the judge's, or a program fails: the text says at which step.
    pub fn play(&self, world: &World, steps: &[Step]) -> Result<()> {
        let mut flows = Vec::new();
        let played = self.play_steps(world, steps, &mut flows);
        for flow in &flows {
            self.ask(flow.call.source, &format!("close {}", flow.id))?;
        }
        played
    }

    fn play_steps(&self, world: &World, steps: &[Step], flows: &mut Vec<Flow>) -> Result<()> {
        let mut world = world;
        self.apply(world)?;
        for (number, step) in steps.iter().enumerate() {
            let at = || format!("step {number}, {step:?}");
            match step {
                Step::Apply(next) => {
                    world = next;
                    self.apply(world).with_context(at)?;
                    flows.iter_mut().for_each(|flow| flow.rejudge(world));
                }
                Step::Open {
                    source,
                    destination,
                    port,
                    transport,
                    address,
                } => {
                    let call = Call {
                        source: *source,
                        destination: *destination,
                        transport: *transport,
                        port: base(*destination) + OFFSETS[*port],
                    };
                    flows.extend(self.open(world, number, call, *port, *address).with_context(at)?);
                }
                Step::Say(index, method) => {
                    on(flows, *index, |flow| self.say(world, flow, *method)).with_context(at)?
                }
                Step::Push(index) => on(flows, *index, |flow| self.push(world, flow)).with_context(at)?,
                Step::Close(index) => on(flows, *index, |flow| {
                    self.ask(flow.call.source, &format!("close {}", flow.id))?;
                    Ok(false)
                })?,
            }
        }
        // Whatever is still there.
        for index in (0..flows.len()).rev() {
            let at = || format!("at the end, flow {} {:?}", flows[index].id, flows[index].call);
            let at = at();
            on(flows, index, |flow| self.say(world, flow, Method::Get)).context(at)?;
        }
        Ok(())
    }

    /// Puts a world in force: on return the kernel's tables have it, and what it denies is cut.
    fn apply(&self, world: &World) -> Result<()> {
        let yaml = yaml(world);
        self.lab.apply(&yaml).context(yaml)
    }

    fn open(&self, world: &World, id: usize, call: Call, port: usize, address: Address) -> Result<Option<Flow>> {
        let target = self.target(call, port, address);
        let transport = match call.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        let told = self.ask(call.source, &format!("open {id} {transport} {target}"))?;
        let outcome = outcome(&told)?;
        let ruling = world.judge(call);
        let (expected, state) = match (call.transport, ruling) {
            (Transport::Udp, _) => (Outcome::Done, State::Datagrams),
            (_, Ruling::Pass) => (Outcome::Done, State::Direct),
            (_, Ruling::Requests) => (Outcome::Done, State::Proxied),
            (_, Ruling::Deny) => (denied(call), State::Cut),
        };
        agree(world, call, ruling, expected, outcome, &told)?;
        let local = told["local"].as_str().unwrap_or_default().to_owned();
        Ok((outcome == Outcome::Done).then_some(Flow {
            id,
            call,
            local,
            state,
            initiator: None,
        }))
    }

    /// The client sends something and waits for the answer. Whether the flow can go on.
    fn say(&self, world: &World, flow: &mut Flow, method: Method) -> Result<bool> {
        let call = flow.call;
        let told = self.ask(call.source, &format!("say {} {}", flow.id, word(method)))?;
        let found = outcome(&told)?;
        match flow.state {
            State::Direct => agree(world, call, Ruling::Pass, Outcome::Status(200), found, &told)?,
            State::Proxied => {
                let ruling = world.judge_request(call, method);
                let status = if ruling == Ruling::Deny { 403 } else { 200 };
                agree(world, call, ruling, Outcome::Status(status), found, &told)?;
            }
            State::Cut => {
                let ended = matches!(found, Outcome::Errno(_) | Outcome::Closed);
                ensure!(
                    ended,
                    "{call:?} was denied, and its client was told {told}\n{}",
                    yaml(world)
                );
                self.ask(call.source, &format!("close {}", flow.id))?;
                return Ok(false);
            }
            State::Datagrams => {
                let ruling = flow.datagram(world, End::Client);
                let expected = if ruling == Ruling::Deny {
                    denied(call)
                } else {
                    Outcome::Done
                };
                agree(world, call, ruling, expected, found, &told)?;
            }
        }
        if told["closing"] == true {
            self.ask(call.source, &format!("close {}", flow.id))?;
            return Ok(false);
        }
        Ok(true)
    }

    /// The server sends a datagram that nobody asked for.
    fn push(&self, world: &World, flow: &mut Flow) -> Result<bool> {
        let call = flow.call;
        // No rule is about somebody outside the mesh.
        if flow.state != State::Datagrams || call.source == OUTSIDER && flow.initiator.is_none() {
            return Ok(true);
        }
        let told = self.ask(call.destination, &format!("push {} {}", call.port, flow.local))?;
        let ruling = flow.datagram(world, End::Server);
        let expected = if ruling == Ruling::Deny {
            Outcome::Errno(EPERM)
        } else {
            Outcome::Done
        };
        agree(world, flow.back(), ruling, expected, outcome(&told)?, &told)?;
        if expected == Outcome::Done {
            let told = self.ask(call.source, &format!("hear {}", flow.id))?;
            agree(world, flow.back(), ruling, Outcome::Done, outcome(&told)?, &told)?;
        }
        Ok(true)
    }

    fn target(&self, call: Call, port: usize, address: Address) -> String {
        let [v4, v6] = self.virtual_ips[call.destination];
        let own = call.port;
        match address {
            Address::Virtual4 => format!("{v4}:{}", SERVICE_PORTS[port]),
            Address::Virtual6 => format!("[{v6}]:{}", SERVICE_PORTS[port]),
            Address::Loopback4 => format!("127.0.0.1:{own}"),
            Address::Loopback6 => format!("[::1]:{own}"),
            Address::Own => format!("10.77.0.5:{own}"),
        }
    }

    fn ask(&self, actor: usize, words: &str) -> Result<Value> {
        self.actors.borrow_mut()[actor].step(words)
    }
}

// === impl Flow ===

impl Flow {
    /// A connection whose verdict is another one now. Datagrams are judged when they are sent.
    fn rejudge(&mut self, world: &World) {
        if self.state == State::Direct && world.judge(self.call) != Ruling::Pass {
            self.state = State::Cut;
        }
    }

    /// The verdict on a datagram of `sender`: that on whoever began. What is denied begins nothing.
    fn datagram(&mut self, world: &World, sender: End) -> Ruling {
        let ruling = world.judge(match self.initiator.unwrap_or(sender) {
            End::Client => self.call,
            End::Server => self.back(),
        });
        if ruling != Ruling::Deny {
            self.initiator.get_or_insert(sender);
        }
        ruling
    }

    /// The server as the one that calls.
    fn back(&self) -> Call {
        let port = self.local.rsplit(':').next().and_then(|port| port.parse().ok());
        Call {
            source: self.call.destination,
            destination: self.call.source,
            transport: self.call.transport,
            port: port.unwrap_or_default(),
        }
    }
}

/// Does `act` with the flow that is meant, and forgets it where it cannot go on.
fn on(flows: &mut Vec<Flow>, index: usize, act: impl FnOnce(&mut Flow) -> Result<bool>) -> Result<()> {
    if flows.is_empty() {
        return Ok(());
    }
    let index = index % flows.len();
    if !act(&mut flows[index])? {
        flows.remove(index);
    }
    Ok(())
}

/// How a client learns it: in the mesh by its own side, outside by the accepting one.
fn denied(call: Call) -> Outcome {
    Outcome::Errno(if call.source == OUTSIDER { ECONNREFUSED } else { EPERM })
}

fn outcome(told: &Value) -> Result<Outcome> {
    Ok(match told {
        told if told["ok"] == true => told["status"].as_u64().map_or(Outcome::Done, Outcome::Status),
        told if told["silent"] == true => Outcome::Silence,
        told if told["closed"] == true => Outcome::Closed,
        told => match told["errno"].as_i64() {
            Some(errno) => Outcome::Errno(errno),
            None => bail!("an answer that is none: {told}"),
        },
    })
}

fn agree(world: &World, call: Call, ruling: Ruling, expected: Outcome, found: Outcome, told: &Value) -> Result<()> {
    ensure!(
        expected == found,
        "{} to port {} of {} by {:?}: the judge says {ruling:?} ({expected:?}), what happened was {found:?} ({told})\n{}",
        name(call.source),
        call.port,
        name(call.destination),
        call.transport,
        yaml(world),
    );
    Ok(())
}

fn virtual_ips(lab: &Lab, actor: usize) -> Result<[IpAddr; 2]> {
    let (service, namespace) = (account(actor), NAMESPACES[HOME[actor]]);
    poll::until("the service to have endpoints of both families at each port", || {
        let status = lab.status()?;
        let services = status["services"].as_array().context("services")?;
        let mut found = services
            .iter()
            .filter(|s| s["name"] == service && s["namespace"] == namespace);
        let found = found.next().with_context(|| format!("no service {service}"))?;
        let ports = found["ports"].as_array().context("ports")?;
        // Each port by TCP and by UDP.
        ensure!(ports.len() == 2 * SERVICE_PORTS.len(), "ports: {ports:?}");
        ensure!(
            ports
                .iter()
                .all(|port| port["endpoints"].as_array().is_some_and(|all| !all.is_empty())),
            "endpoints: {ports:?}"
        );
        let ip = |field: &str| -> Result<IpAddr> { Ok(found[field].as_str().context("a virtual IP")?.parse()?) };
        Ok([ip("vip4")?, ip("vip6")?])
    })
}

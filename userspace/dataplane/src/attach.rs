//! Programs behind their links. Links are pinned; a restart puts the new program behind the old link in place.

use std::{
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use aya::{
    Ebpf,
    maps::{Map, SockHash},
    programs::{CgroupAttachMode, CgroupSkbAttachType, Program, ProgramError, links::FdLink},
};

use crate::{cgroup::Cgroup, error::DataplaneError, loader::pin_name, sys};

/// Every program that is attached to the captured cgroup, in the order they are attached: telemetry and records first,
/// so that no decision is taken without them.
pub const CGROUP_PROGRAMS: [&str; 16] = [
    "weft_sockcreate",
    "weft_postbind4",
    "weft_postbind6",
    "weft_sockrel",
    "weft_setsockopt",
    "weft_sockops",
    "weft_getpeer4",
    "weft_getpeer6",
    "weft_recvmsg4",
    "weft_recvmsg6",
    "weft_sendmsg4",
    "weft_sendmsg6",
    "weft_connect4",
    "weft_connect6",
    "weft_skb_in",
    "weft_skb_out",
];

/// The program that answers a foreign proxy's SO_ORIGINAL_DST, on its cgroup alone.
pub const GETSOCKOPT: &str = "weft_getsockopt";

/// The program on the sockmap.
pub const SK_MSG: &str = "weft_sk_msg";
/// The sockhash whose sockets it sees.
pub const SK_MSG_MAP: &str = "weft_tx";

/// Loads (verifies) every program; nothing is attached yet.
pub fn load_all(ebpf: &mut Ebpf) -> Result<(), DataplaneError> {
    let programs = CGROUP_PROGRAMS.into_iter().chain([SK_MSG]);
    for name in programs {
        load(name, program(ebpf, name)?)?;
    }
    Ok(())
}

/// Loads (verifies) one.
pub fn load(name: &str, program: &mut Program) -> Result<(), DataplaneError> {
    macro_rules! load {
        ($($kind:ident)*) => {
            match program {
                $(Program::$kind(program) => program.load(),)*
                _ => Err(ProgramError::UnexpectedProgramType),
            }
        };
    }
    load!(CgroupSkb CgroupSock CgroupSockAddr CgroupSockopt SchedClassifier SkLookup SkMsg SockOps)
        .map_err(|source| refused(name, source))
}

/// Attaches the loaded programs of the cgroup, or puts each behind its pinned link. The one on the sockmap comes before
/// ([`attach_sk_msg`]): nothing may be able to put a socket there without it.
pub fn attach_all(ebpf: &mut Ebpf, cgroup: &Cgroup, links: &Path) -> Result<(), DataplaneError> {
    let file = cgroup.file()?;
    let cgroup_id = crate::cgroup::id_of(cgroup.path()).map_err(|source| DataplaneError::Cgroup {
        path: cgroup.path().to_path_buf(),
        what: "read",
        source,
    })?;
    for name in CGROUP_PROGRAMS {
        attach_one(
            ebpf,
            name,
            cgroup.path(),
            (&file, cgroup_id),
            &links.join(pin_name(name)),
        )?;
    }
    Ok(())
}

/// Loads the program of foreign proxies, if it is not.
pub fn load_getsockopt(ebpf: &mut Ebpf) -> Result<(), DataplaneError> {
    match program(ebpf, GETSOCKOPT)? {
        Program::CgroupSockopt(program) if program.fd().is_err() => {
            program.load().map_err(|source| refused(GETSOCKOPT, source))
        }
        _ => Ok(()),
    }
}

/// Puts a loaded program behind the pinned link of a cgroup (opened, with its id), made if need be.
pub fn attach_one(
    ebpf: &mut Ebpf,
    name: &'static str,
    target: &Path,
    (file, cgroup_id): (&fs::File, u64),
    pin: &Path,
) -> Result<(), DataplaneError> {
    let attach_error = |source: io::Error| DataplaneError::Attach {
        program: name,
        target: target.display().to_string(),
        source,
    };
    let program = program(ebpf, name)?;
    if let Some(link) = reusable(pin, cgroup_id)? {
        let fd = program.fd().map_err(|source| refused(name, source))?;
        return sys::link_update(&link, fd.as_fd()).map_err(attach_error);
    }
    macro_rules! attach {
        ($program:ident $(, $how:expr)*) => {
            $program
                .attach(file $(, $how)*)
                .and_then(|id| $program.take_link(id))
                .map_err(|source| attach_error(to_io(source)))
                .and_then(|link| FdLink::try_from(link).map_err(|source| attach_error(io::Error::other(source))))?
        };
    }
    let mode = CgroupAttachMode::Single;
    let link = match program {
        Program::CgroupSock(program) => attach!(program, mode),
        Program::CgroupSockAddr(program) => attach!(program, mode),
        Program::SockOps(program) => attach!(program, mode),
        Program::CgroupSkb(program) if name == "weft_skb_in" => {
            attach!(program, CgroupSkbAttachType::Ingress, mode)
        }
        Program::CgroupSkb(program) => attach!(program, CgroupSkbAttachType::Egress, mode),
        Program::CgroupSockopt(program) => {
            let fd = program.fd().map_err(|source| refused(name, source))?;
            let kind = if name == GETSOCKOPT {
                sys::Sockopt::Get
            } else {
                sys::Sockopt::Set
            };
            return sys::pin_sockopt(fd.as_fd(), file, kind, pin).map_err(attach_error);
        }
        _ => return Err(DataplaneError::Missing { what: "program", name }),
    };
    // The kernel keeps the link for as long as the pin exists; dropping our descriptor changes nothing.
    link.pin(pin).map_err(|source| DataplaneError::Pin {
        path: pin.to_path_buf(),
        source: io::Error::other(source),
    })?;
    Ok(())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, DataplaneError> {
    ebpf.program_mut(name)
        .ok_or(DataplaneError::Missing { what: "program", name })
}

/// The pinned link, if it still belongs to this cgroup. One that belongs to another (removed and made again) is dropped.
fn reusable(pin: &Path, cgroup_id: u64) -> Result<Option<OwnedFd>, DataplaneError> {
    if !pin.exists() {
        return Ok(None);
    }
    let fail = |source: io::Error| DataplaneError::Pin {
        path: pin.to_path_buf(),
        source,
    };
    let link = sys::obj_get(pin).map_err(fail)?;
    if sys::link_cgroup(&link).map_err(fail)? == cgroup_id {
        return Ok(Some(link));
    }
    fs::remove_file(pin).map_err(fail)?;
    Ok(None)
}

/// `weft_tx` holds the program for as long as the map is pinned; sockets already in the map keep the one they joined with.
pub fn attach_sk_msg(ebpf: &mut Ebpf) -> Result<(), DataplaneError> {
    let attach_error = |source: io::Error| DataplaneError::Attach {
        program: SK_MSG,
        target: SK_MSG_MAP.to_owned(),
        source,
    };
    let map = ebpf.map(SK_MSG_MAP).ok_or(DataplaneError::Missing {
        what: "map",
        name: SK_MSG_MAP,
    })?;
    let fd = match map {
        Map::SockHash(_) => SockHash::<_, [u8; 40]>::try_from(map)
            .map_err(|source| attach_error(io::Error::other(source)))?
            .fd()
            .try_clone(),
        _ => {
            return Err(DataplaneError::Missing {
                what: "sockhash",
                name: SK_MSG_MAP,
            });
        }
    }
    .map_err(|source| attach_error(io::Error::other(source)))?;
    let Program::SkMsg(program) = program(ebpf, SK_MSG)? else {
        return Err(DataplaneError::Missing {
            what: "program",
            name: SK_MSG,
        });
    };
    let id = program.attach(&fd).map_err(|source| attach_error(to_io(source)))?;
    let link = program.take_link(id).map_err(|source| attach_error(to_io(source)))?;
    // Detaching is what the drop would do; the kernel side outlives this process.
    std::mem::forget(link);
    Ok(())
}

pub fn refused(program: &str, source: ProgramError) -> DataplaneError {
    if let ProgramError::LoadError { io_error, .. } = &source
        && io_error.raw_os_error() == Some(libc::EPERM)
    {
        return DataplaneError::Privilege {
            what: "privileges to load kernel programs",
        };
    }
    let text = source.to_string();
    let tail: Vec<&str> = text
        .lines()
        .rev()
        .filter(|line| !line.trim().is_empty())
        .take(6)
        .collect();
    let log_tail = tail.into_iter().rev().collect::<Vec<_>>().join(" | ");
    DataplaneError::Refused {
        program: program.to_owned(),
        log_tail,
        source: Box::new(source),
    }
}

pub fn to_io(source: ProgramError) -> io::Error {
    match source {
        ProgramError::SyscallError(error) => error.io_error,
        other => io::Error::other(other),
    }
}

//! Somebody else's program on a device: it lets every packet through (TC_ACT_OK), so nobody behind it is asked.

use std::{fs::File, thread};

use anyhow::{Context, Result, anyhow};
use aya::{
    Ebpf, EbpfLoader,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        tc::{NlOptions, TcAttachOptions, TcHandle, qdisc_add_clsact},
    },
};
use nix::sched::{CloneFlags, setns};

use crate::Lab;

/// Where it is among the programs of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Before those that are there.
    First,
    /// Where whoever says nothing gets: behind those that are there (TCX), or behind low priorities (a filter of clsact).
    Usual,
}

/// It goes when this is dropped.
pub struct Other {
    _attached: Ebpf,
    /// By TCX (Linux 6.6), where whoever comes later may get before it; else as a filter of clsact, whose priority is its place.
    pub by_tcx: bool,
}

// === impl Lab ===

impl Lab {
    /// Attaches one to a device of the lab, where packets come in.
    ///
    /// # Errors
    /// There is no such device, or the kernel refuses it.
    pub fn other_program(&self, device: &str, place: Place) -> Result<Other> {
        let netns = File::open(self.netns().path()).context("open the lab's network namespace")?;
        // A thread of its own: it does not come back from there.
        let attaching = || -> Result<Other> {
            setns(&netns, CloneFlags::CLONE_NEWNET).context("enter the lab's network namespace")?;
            let mut ebpf = EbpfLoader::new().load(&object()).context("load a program")?;
            let program: &mut SchedClassifier = ebpf.program_mut(NAME).context("the program")?.try_into()?;
            program.load().context("load a program")?;
            let by_tcx = attach(program, device, place)?;
            Ok(Other {
                _attached: ebpf,
                by_tcx,
            })
        };
        thread::scope(|scope| scope.spawn(attaching).join()).map_err(|_| anyhow!("attaching a program panicked"))?
    }
}

/// Whether by TCX.
fn attach(program: &mut SchedClassifier, device: &str, place: Place) -> Result<bool> {
    let order = match place {
        Place::First => LinkOrder::first(),
        Place::Usual => LinkOrder::default(),
    };
    let ingress = TcAttachType::Ingress;
    if program
        .attach_with_options(device, ingress, TcAttachOptions::TcxOrder(order))
        .is_ok()
    {
        return Ok(true);
    }
    // Before Linux 6.6.
    let _ = qdisc_add_clsact(device);
    let filter = NlOptions {
        priority: if place == Place::First { 1 } else { 10 },
        handle: TcHandle::new(0, 1),
        classid: None,
    };
    let attached = program.attach_with_options(device, ingress, TcAttachOptions::Netlink(filter));
    attached.context("attach a program")?;
    Ok(false)
}

const NAME: &str = "others";
/// `r0 = 0 (TC_ACT_OK); exit`
const CODE: [u64; 2] = [0xb7, 0x95];
/// Names of sections and of the program, by their offsets.
const NAMES: &[u8] = b"\0names\0classifier\0symbols\0license\0others\0";
const LICENSE: &[u8] = b"GPL\0";

/// An ELF object of just that program: nobody need install a compiler for two instructions.
fn object() -> Vec<u8> {
    const HEADER: usize = 64;
    /// The kind of a section of symbols.
    const SYMBOLS: u32 = 2;
    let offset = |name: &str| -> u32 {
        let name = format!("\0{name}\0");
        let found = NAMES.windows(name.len()).position(|window| window == name.as_bytes());
        found.map_or(0, |at| at as u32 + 1)
    };
    let code: Vec<u8> = CODE.iter().flat_map(|word| word.to_le_bytes()).collect();
    // The first symbol is nobody's. Then the program: global function, in section 2, all of it.
    let mut symbols = vec![0; 24];
    symbols.extend(offset(NAME).to_le_bytes());
    symbols.extend([0x12, 0, 2, 0]);
    symbols.extend(0_u64.to_le_bytes());
    symbols.extend((code.len() as u64).to_le_bytes());

    // Name, kind, flags, contents.
    let sections: [(&str, u32, u64, &[u8]); 4] = [
        ("names", 3, 0, NAMES),
        ("classifier", 1, 6, &code),
        ("license", 1, 2, LICENSE),
        ("symbols", SYMBOLS, 0, &symbols),
    ];
    let (mut contents, mut headers) = (Vec::new(), vec![0; HEADER]);
    for (name, kind, flags, bytes) in sections {
        // Where their names are, how many are local, how long each is.
        let (link, info, entry) = if kind == SYMBOLS {
            (1_u32, 1_u32, 24_u64)
        } else {
            (0, 0, 0)
        };
        contents.resize(contents.len().next_multiple_of(8), 0);
        headers.extend(offset(name).to_le_bytes());
        headers.extend(kind.to_le_bytes());
        for word in [flags, 0, (HEADER + contents.len()) as u64, bytes.len() as u64] {
            headers.extend(word.to_le_bytes());
        }
        headers.extend(link.to_le_bytes());
        headers.extend(info.to_le_bytes());
        headers.extend(8_u64.to_le_bytes());
        headers.extend(entry.to_le_bytes());
        contents.extend(bytes);
    }
    contents.resize(contents.len().next_multiple_of(8), 0);
    // 64 bits, little-endian, relocatable, for BPF.
    let mut object = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x01\0\xf7\0\x01\0\0\0".to_vec();
    for word in [0, 0, (HEADER + contents.len()) as u64] {
        object.extend(word.to_le_bytes());
    }
    object.extend(0_u32.to_le_bytes());
    for half in [HEADER as u16, 0, 0, HEADER as u16, sections.len() as u16 + 1, 1] {
        object.extend(half.to_le_bytes());
    }
    object.extend(contents);
    object.extend(headers);
    object
}

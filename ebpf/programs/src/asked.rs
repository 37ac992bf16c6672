//! Whom a datagram socket asked, so that each answer seems to come from whom its question was sent to. The socket's record
//! names the last one; who came before is remembered beside it.

use weft_abi::{Addr, MAX_ASKED, SockRecord, Translation, sock_flags};

use crate::context::SockAddr;

/// Before `record` is made to name another: what it says now. `None`: nothing was translated.
#[inline(always)]
pub fn before(record: &SockRecord) -> Option<Translation> {
    if record.flags & sock_flags::TRANSLATED == 0 {
        return None;
    }
    Some(Translation {
        original: record.original,
        translated: record.translated,
        original_port_be: record.original_port_be,
        translated_port_be: record.translated_port_be,
    })
}

/// Keeps what the record said `before`, unless it says the same now.
#[inline(always)]
pub fn remember(hook: &SockAddr, before: Option<Translation>, record: &SockRecord) {
    let Some(before) = before else { return };
    if record.flags & sock_flags::TRANSLATED != 0
        && record.original_port_be == before.original_port_be
        && record.original == before.original
        && record.translated_port_be == before.translated_port_be
        && record.translated == before.translated
    {
        return;
    }
    let Some(asked) = hook.asked_or_insert() else { return };
    let mut slot = MAX_ASKED;
    let mut index = 0;
    while index < MAX_ASKED {
        let known = &asked.translations[index];
        if known.translated_port_be == before.translated_port_be && known.translated == before.translated {
            slot = index;
        }
        index += 1;
    }
    if slot == MAX_ASKED {
        slot = asked.count as usize;
        asked.count = asked.count.wrapping_add(1);
    }
    asked.translations[slot % MAX_ASKED] = before;
}

/// Whoever the context names as sender or peer becomes whom the socket asked there; others stay as they are.
#[inline(always)]
pub fn restore(hook: &SockAddr) {
    let (addr, port_be) = (hook.addr(), hook.port_be());
    if let Some(record) = hook.record()
        && record.flags & sock_flags::TRANSLATED != 0
        && port_be == record.translated_port_be
        && addr == record.translated
    {
        return answer(hook, &record.original, record.original_port_be);
    }
    let Some(asked) = hook.asked() else { return };
    let mut index = 0;
    while index < MAX_ASKED {
        let known = &asked.translations[index];
        if port_be == known.translated_port_be && addr == known.translated {
            return answer(hook, &known.original, known.original_port_be);
        }
        index += 1;
    }
}

/// An IPv4 hook has no room for another family's address.
#[inline(always)]
fn answer(hook: &SockAddr, original: &Addr, port_be: u16) {
    if hook.is_v6() || original.is_v4() {
        hook.rewrite(original, port_be);
    }
}

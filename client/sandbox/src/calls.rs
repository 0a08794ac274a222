//! System calls, by seccomp: what neither training nor a connection needs is answered with EPERM.

use crate::{Limits, SandboxError};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter_all_threads, sock_filter,
};
use std::collections::BTreeMap;

/// Never needed: other programs, other processes' memory, the kernel's own affairs, and rings of calls that no filter sees.
const NEVER: [i64; 35] = [
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_open_by_handle_at,
];
/// The bits of a socket's kind that say what it is.
const KIND_MASK: u64 = 0xf;
/// What makes a send connect.
const FASTOPEN: u64 = 0x2000_0000;
/// Calls that connect on the way when [`libc::MSG_FASTOPEN`] is among their flags, and where these stand.
const SENDS: [(i64, u8); 3] =
    [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)];
/// From this number on calls are made as on x32: the same ones, under numbers that no rule has.
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;

pub(crate) fn restrict(limits: &Limits) -> Result<(), SandboxError> {
    let program = program(limits).map_err(|e| SandboxError::Seccomp(e.to_string()))?;
    apply_filter_all_threads(&program).map_err(|e| SandboxError::Seccomp(e.to_string()))
}

fn program(limits: &Limits) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        NEVER.into_iter().map(|call| (call, Vec::new())).collect();
    rules.insert(libc::SYS_socket, sockets(limits)?);
    if !limits.gpu {
        // Who listens without a port of their own is given one, which Landlock does not see. A GPU's driver listens on a
        // local socket, and which one it is cannot be told here.
        rules.insert(libc::SYS_listen, Vec::new());
    }
    for (call, flags) in SENDS {
        let opens = is(flags, SeccompCmpOp::MaskedEq(FASTOPEN), libc::MSG_FASTOPEN)?;
        rules.insert(call, vec![SeccompRule::new(vec![opens])?]);
    }
    let refuse = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        refuse.clone(),
        std::env::consts::ARCH.try_into()?,
    )?;
    let mut program = numbers(refuse.into());
    program.extend(BpfProgram::try_from(filter)?);
    Ok(program)
}

/// Refuses numbers under which the rules would not know a call.
#[cfg(target_arch = "x86_64")]
fn numbers(refuse: u32) -> BpfProgram {
    // The call's number is loaded, and is below X32, or else this is refused.
    [(0x20, 0, 0), (0x35, 1, X32), (0x06, 0, refuse)]
        .map(|(code, jf, k)| sock_filter { code, jt: 0, jf, k })
        .into()
}

/// Refuses numbers under which the rules would not know a call: here are none.
#[cfg(not(target_arch = "x86_64"))]
const fn numbers(_refuse: u32) -> BpfProgram {
    Vec::new()
}

/// A condition on an argument of a call, of which 32 bits count.
fn is(argument: u8, op: SeccompCmpOp, value: i32) -> Result<SeccompCondition, BackendError> {
    let value = u64::from(value.cast_unsigned());
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value)
}

/// Sockets that are refused.
fn sockets(limits: &Limits) -> Result<Vec<SeccompRule>, BackendError> {
    let mut families = vec![libc::AF_INET, libc::AF_INET6];
    if limits.names {
        families.push(libc::AF_NETLINK);
    }
    if limits.gpu || limits.local {
        families.push(libc::AF_UNIX);
    }
    let mut kinds = vec![libc::SOCK_STREAM];
    // Landlock's rules are about TCP alone, and not about others that carry a stream: MPTCP, SCTP, SMC.
    let mut protocols = vec![0, libc::IPPROTO_TCP];
    if limits.names {
        kinds.push(libc::SOCK_DGRAM);
        protocols.push(libc::IPPROTO_UDP);
    }
    // Of every other family; and of these, of every other kind and by every other protocol.
    let others = families.iter().map(|family| is(0, SeccompCmpOp::Ne, *family));
    let mut refused = vec![SeccompRule::new(others.collect::<Result<_, _>>()?)?];
    for family in [libc::AF_INET, libc::AF_INET6] {
        let of = is(0, SeccompCmpOp::Eq, family)?;
        for kind in (0..=0xf).filter(|kind| !kinds.contains(kind)) {
            let kind = is(1, SeccompCmpOp::MaskedEq(KIND_MASK), kind)?;
            refused.push(SeccompRule::new(vec![of.clone(), kind])?);
        }
        let others = protocols.iter().map(|protocol| is(2, SeccompCmpOp::Ne, *protocol));
        let by: Vec<_> = [Ok(of)].into_iter().chain(others).collect::<Result<_, _>>()?;
        refused.push(SeccompRule::new(by)?);
    }
    Ok(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do with a call: the filter is run as it runs one.
    fn refused(limits: &Limits, nr: u32, args: &[i32]) -> bool {
        let program = program(limits).expect("a filter");
        let arch = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
        let word = |at: u32| match at {
            0 => nr,
            4 => arch,
            // The lower half of an argument comes first.
            _ if at >= 16 && at.is_multiple_of(8) => {
                args.get((at as usize - 16) / 8).map_or(0, |arg| arg.cast_unsigned())
            }
            _ => 0,
        };
        let (mut at, mut a) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            let jump = |yes: bool| usize::from(if yes { jt } else { jf });
            at += 1;
            match code {
                0x20 => a = word(k),
                0x54 => a &= k,
                0x05 => at += k as usize,
                0x15 => at += jump(a == k),
                0x25 => at += jump(a > k),
                0x35 => at += jump(a >= k),
                0x06 => return k != libc::SECCOMP_RET_ALLOW,
                _ => panic!("instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn what_landlock_does_not_see_is_no_way_around_it() {
        use libc::{AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_STREAM};
        let (plain, names) = (Limits::default(), Limits { names: true, ..Limits::default() });
        let gpu = Limits { gpu: true, ..Limits::default() };
        let nr = |call: i64| u32::try_from(call).expect("a number");
        let socket = |limits: &Limits, family, kind, protocol| {
            refused(limits, nr(libc::SYS_socket), &[family, kind, protocol])
        };
        for family in [AF_INET, AF_INET6] {
            for limits in [&plain, &names, &gpu] {
                assert!(!socket(limits, family, SOCK_STREAM | SOCK_CLOEXEC, 0));
                assert!(!socket(limits, family, SOCK_STREAM, libc::IPPROTO_TCP));
                for protocol in [libc::IPPROTO_MPTCP, libc::IPPROTO_SCTP, 256, -1] {
                    assert!(socket(limits, family, SOCK_STREAM, protocol), "{family} {protocol}");
                }
                for kind in (0..16).filter(|kind| ![SOCK_STREAM, SOCK_DGRAM].contains(kind)) {
                    assert!(socket(limits, family, kind | SOCK_CLOEXEC, 0), "{family} {kind}");
                }
            }
            assert!(socket(&plain, family, SOCK_DGRAM, 0));
            assert!(!socket(&names, family, SOCK_DGRAM, 0));
            assert!(!socket(&names, family, SOCK_DGRAM, libc::IPPROTO_UDP));
            assert!(socket(&names, family, SOCK_DGRAM, libc::IPPROTO_UDPLITE));
        }
        assert!(socket(&plain, AF_UNIX, SOCK_STREAM, 0) && !socket(&gpu, AF_UNIX, SOCK_STREAM, 0));
        let local = Limits { local: true, ..Limits::default() };
        assert!(!socket(&local, AF_UNIX, SOCK_STREAM, 0));
        assert!(refused(&local, nr(libc::SYS_listen), &[]));
        assert!(socket(&plain, AF_NETLINK, SOCK_DGRAM, 0));
        assert!(!socket(&names, AF_NETLINK, SOCK_DGRAM, 0));
        for (call, at) in SENDS {
            let mut args = [0; 6];
            args[usize::from(at)] = libc::MSG_NOSIGNAL;
            assert!(!refused(&plain, nr(call), &args), "{call}");
            args[usize::from(at)] |= libc::MSG_FASTOPEN;
            assert!(refused(&plain, nr(call), &args), "{call}");
        }
        assert!(refused(&plain, nr(libc::SYS_listen), &[]));
        assert!(!refused(&gpu, nr(libc::SYS_listen), &[]));
        assert!(refused(&plain, nr(libc::SYS_execve), &[]) && !refused(&plain, 0, &[]));
        #[cfg(target_arch = "x86_64")]
        assert!(refused(&plain, X32, &[]) && refused(&plain, u32::MAX, &[]));
    }
}

//! System calls, by seccomp: what neither training nor a connection needs is answered with EPERM.

use crate::{Limits, SandboxError};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter_all_threads,
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
/// Whole packets, the old way.
const SOCK_PACKET: i32 = 10;
/// The bits of a socket's kind that say what it is.
const KIND_MASK: u64 = 0xf;

pub(crate) fn restrict(limits: &Limits) -> Result<(), SandboxError> {
    let program = program(limits).map_err(|e| SandboxError::Seccomp(e.to_string()))?;
    apply_filter_all_threads(&program).map_err(|e| SandboxError::Seccomp(e.to_string()))
}

fn program(limits: &Limits) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        NEVER.into_iter().map(|call| (call, Vec::new())).collect();
    rules.insert(libc::SYS_socket, sockets(limits)?);
    SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM.cast_unsigned()),
        std::env::consts::ARCH.try_into()?,
    )?
    .try_into()
}

/// Sockets that are refused.
fn sockets(limits: &Limits) -> Result<Vec<SeccompRule>, BackendError> {
    let is = |argument, op, value: i32| {
        let value = u64::from(value.cast_unsigned());
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value)
    };
    let mut families = vec![libc::AF_INET, libc::AF_INET6];
    if limits.names {
        families.push(libc::AF_NETLINK);
    }
    if limits.gpu {
        families.push(libc::AF_UNIX);
    }
    // Of every other family; and of these, all that is neither a stream nor, where names are resolved, a datagram.
    let others = families.iter().map(|family| is(0, SeccompCmpOp::Ne, *family));
    let mut refused = vec![SeccompRule::new(others.collect::<Result<_, _>>()?)?];
    let mut kinds = vec![libc::SOCK_RAW, SOCK_PACKET, libc::SOCK_SEQPACKET, libc::SOCK_RDM];
    if !limits.names {
        kinds.push(libc::SOCK_DGRAM);
    }
    for family in [libc::AF_INET, libc::AF_INET6] {
        for kind in &kinds {
            let of = is(0, SeccompCmpOp::Eq, family)?;
            let kind = is(1, SeccompCmpOp::MaskedEq(KIND_MASK), *kind)?;
            refused.push(SeccompRule::new(vec![of, kind])?);
        }
    }
    Ok(refused)
}

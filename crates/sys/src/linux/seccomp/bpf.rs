//! The program that the kernel runs at each system call, made from rules. Pure.
//!
//! It is classic BPF over `struct seccomp_data`. The comparison of the number comes first and nothing else is
//! loaded for calls without a rule, so the kernel finds out at installation that they are always allowed, and
//! does not run the program for them.

use std::fmt;

use libc::{BPF_ABS, BPF_JA, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter};

/// What happens to a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The kernel executes it.
    Allow,
    /// It waits for the answer of the [`Listener`](super::Listener).
    Notify,
    /// It fails with this number, from 1 to 4095.
    Errno(i32),
}

/// A comparison of an argument's low 32 bits. The kernel ignores the others if the parameter is an `int`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArgEq {
    /// Which argument, from 0 to 5.
    pub index: u8,
    /// What it must be.
    pub value: u32,
}

/// An action for calls with one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule<'a> {
    /// The system call (`SYS_*` of this architecture).
    pub syscall: i64,
    /// All of these must hold. Otherwise the next rule for this number decides, and without one the call is
    /// allowed.
    pub args: &'a [ArgEq],
    /// What happens.
    pub action: Action,
}

/// What happens to a call that an allow list does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlisted {
    /// It fails with `EPERM`, and is counted in [`denials`](super::denials) under this number. Where this
    /// architecture's registers are not known here, it is not counted.
    Deny(u16),
    /// It ends the process.
    Kill,
}

/// A filter for one program, its threads and descendants. One of [`build`](Self::build) allows every call without
/// a rule, and all calls of foreign architectures (on x86-64 also i386 and x32). One of
/// [`allow_only`](Self::allow_only) is the reverse.
#[derive(Clone, Debug)]
pub struct Filter {
    program: Vec<sock_filter>,
    notified: Vec<i64>,
}

/// Why rules are no filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterError {
    /// A number is not one of a system call, an argument or an error.
    OutOfRange,
    /// The kernel limits a program to 4096 instructions.
    TooManyRules,
    /// The number of this architecture is not known here.
    UnknownArchitecture,
}

impl fmt::Display for FilterError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::OutOfRange => "a rule of the seccomp filter has a number that does not exist",
            Self::TooManyRules => "the seccomp filter has more than 4096 instructions",
            Self::UnknownArchitecture => "no seccomp filter is known for this architecture",
        })
    }
}

impl std::error::Error for FilterError {}

/// `AUDIT_ARCH_*` of linux/audit.h: the ELF machine, and bits for 64 bits and little-endian.
const ARCHITECTURE: Option<u32> = if cfg!(all(target_arch = "x86_64", target_pointer_width = "64"))
{
    Some(0xC000_003E)
} else if cfg!(all(target_arch = "aarch64", target_endian = "little")) {
    Some(0xC000_00B7)
} else if cfg!(target_arch = "riscv64") {
    Some(0xC000_00F3)
} else if cfg!(target_arch = "loongarch64") {
    Some(0xC000_0102)
} else if cfg!(all(target_arch = "powerpc64", target_endian = "little")) {
    Some(0xC000_0015)
} else if cfg!(target_arch = "s390x") {
    Some(0x8000_0016)
} else {
    None
};

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Where an argument's low 32 bits are in its 64.
const LOW_WORD: u32 = if cfg!(target_endian = "little") { 0 } else { 4 };

/// The numbers of the calls of x32 have this bit; their architecture is that of x86-64.
const X32: i64 = 0x4000_0000;

const MAX_ERRNO: i32 = 4095;
const MAX_ARGUMENTS: u8 = 6;
const MAX_INSTRUCTIONS: usize = libc::BPF_MAXINSNS as usize;

impl Filter {
    /// Makes the program. The first rule of a number that matches a call decides.
    ///
    /// # Errors
    ///
    /// See [`FilterError`].
    pub fn build(rules: &[Rule<'_>]) -> Result<Self, FilterError> {
        let allow = ret(libc::SECCOMP_RET_ALLOW);
        Self::compile(rules, allow, allow)
    }

    /// Makes the program of an allow list: a call that no rule matches is `unlisted`. A call of a foreign architecture
    /// ends the process, since its number means another call.
    ///
    /// # Errors
    ///
    /// See [`FilterError`].
    pub fn allow_only(rules: &[Rule<'_>], unlisted: Unlisted) -> Result<Self, FilterError> {
        let kill = ret(libc::SECCOMP_RET_KILL_PROCESS);
        let unlisted = match unlisted {
            Unlisted::Kill => kill,
            Unlisted::Deny(tag) if super::denials::ARE_COUNTED => {
                ret(libc::SECCOMP_RET_TRAP | u32::from(tag))
            }
            Unlisted::Deny(_) => ret(libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs()),
        };
        Self::compile(rules, unlisted, kill)
    }

    /// `unlisted` returns for a call that no rule matches, `foreign` for one of another architecture.
    fn compile(
        rules: &[Rule<'_>],
        unlisted: sock_filter,
        foreign: sock_filter,
    ) -> Result<Self, FilterError> {
        let architecture = ARCHITECTURE.ok_or(FilterError::UnknownArchitecture)?;
        let mut program = vec![load(ARCH), equal(architecture, 1, 0), foreign, load(NUMBER)];
        let mut notified = Vec::new();
        for (position, rule) in rules.iter().enumerate() {
            let is_first = |earlier: &Rule<'_>| earlier.syscall != rule.syscall;
            if !rules[..position].iter().all(is_first) {
                continue;
            }
            let number = u32::try_from(rule.syscall).ok();
            let number = number.filter(|_| rule.syscall < X32);
            let number = number.ok_or(FilterError::OutOfRange)?;
            let of_number = rules[position..]
                .iter()
                .filter(|other| other.syscall == rule.syscall);
            let mut block = Vec::new();
            for rule in of_number {
                append(&mut block, rule)?;
                if rule.action == Action::Notify && !notified.contains(&rule.syscall) {
                    notified.push(rule.syscall);
                }
            }
            block.push(unlisted);
            // The offset of a condition has 8 bits, that of a jump 32.
            match u8::try_from(block.len()) {
                Ok(length) => program.push(equal(number, 0, length)),
                Err(_) => {
                    let length = u32::try_from(block.len());
                    let length = length.map_err(|_| FilterError::TooManyRules)?;
                    program.extend([equal(number, 1, 0), jump(length)]);
                }
            }
            program.append(&mut block);
            if program.len() >= MAX_INSTRUCTIONS {
                return Err(FilterError::TooManyRules);
            }
        }
        program.push(unlisted);
        Ok(Self { program, notified })
    }

    /// The numbers of the calls that may wait for an answer.
    #[must_use]
    pub fn notified(&self) -> &[i64] {
        &self.notified
    }

    pub(super) fn program(&self) -> &[sock_filter] {
        &self.program
    }
}

/// Whether a call is one of this architecture.
pub(super) fn is_native(architecture: u32, number: i64) -> bool {
    Some(architecture) == ARCHITECTURE && number < X32
}

/// Appends the instructions of one rule, of which the last returns.
fn append(block: &mut Vec<sock_filter>, rule: &Rule<'_>) -> Result<(), FilterError> {
    let comparisons = u8::try_from(rule.args.len()).map_err(|_| FilterError::OutOfRange)?;
    if comparisons > MAX_ARGUMENTS {
        return Err(FilterError::OutOfRange);
    }
    for (done, arg) in (0..).zip(rule.args) {
        if arg.index >= MAX_ARGUMENTS {
            return Err(FilterError::OutOfRange);
        }
        // What is left of this rule: two instructions for each comparison, and the return.
        let rest = 2 * (comparisons - done - 1) + 1;
        block.push(load(ARGUMENTS + 8 * u32::from(arg.index) + LOW_WORD));
        block.push(equal(arg.value, 0, rest));
    }
    block.push(ret(match rule.action {
        Action::Allow => libc::SECCOMP_RET_ALLOW,
        Action::Notify => libc::SECCOMP_RET_USER_NOTIF,
        Action::Errno(number @ 1..=MAX_ERRNO) => libc::SECCOMP_RET_ERRNO | number.unsigned_abs(),
        Action::Errno(_) => return Err(FilterError::OutOfRange),
    }));
    Ok(())
}

const fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    #[expect(clippy::cast_possible_truncation, reason = "codes have 8 bits")]
    let code = code as u16;
    sock_filter { code, jt, jf, k }
}

/// Loads a word of `struct seccomp_data`.
const fn load(offset: u32) -> sock_filter {
    instruction(BPF_LD | BPF_W | BPF_ABS, offset, 0, 0)
}

/// Skips `then` instructions if the loaded word is `value`, else `otherwise`.
const fn equal(value: u32, then: u8, otherwise: u8) -> sock_filter {
    instruction(BPF_JMP | BPF_JEQ | BPF_K, value, then, otherwise)
}

const fn jump(count: u32) -> sock_filter {
    instruction(BPF_JMP | BPF_JA, count, 0, 0)
}

const fn ret(action: u32) -> sock_filter {
    instruction(BPF_RET | BPF_K, action, 0, 0)
}

#[cfg(test)]
mod tests;

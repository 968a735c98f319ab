use super::*;

/// `struct seccomp_data`.
#[derive(Clone, Copy, Debug)]
struct Call {
    number: u32,
    architecture: u32,
    args: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        let mut bytes = [0; 64];
        bytes[..4].copy_from_slice(&self.number.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.architecture.to_ne_bytes());
        for (arg, place) in self.args.iter().zip(bytes[16..].chunks_exact_mut(8)) {
            place.copy_from_slice(&arg.to_ne_bytes());
        }
        let offset = offset as usize;
        u32::from_ne_bytes(bytes[offset..offset + 4].try_into().unwrap())
    }
}

/// Runs a program as the kernel does, and counts its instructions.
fn interpret(program: &[sock_filter], call: &Call) -> (u32, usize) {
    const LOAD: u16 = (BPF_LD | BPF_W | BPF_ABS) as u16;
    const EQUAL: u16 = (BPF_JMP | BPF_JEQ | BPF_K) as u16;
    const JUMP: u16 = (BPF_JMP | BPF_JA) as u16;
    const RETURN: u16 = (BPF_RET | BPF_K) as u16;
    let (mut accumulator, mut next, mut count) = (0, 0, 0);
    loop {
        let instruction = program[next];
        next += 1;
        count += 1;
        let taken = match instruction.code {
            LOAD => {
                accumulator = call.word(instruction.k);
                0
            }
            EQUAL if accumulator == instruction.k => usize::from(instruction.jt),
            EQUAL => usize::from(instruction.jf),
            JUMP => instruction.k as usize,
            RETURN => return (instruction.k, count),
            other => panic!("unknown instruction {other:#x}"),
        };
        next += taken;
    }
}

/// What the rules say, read plainly.
fn expected(rules: &[Rule<'_>], call: &Call) -> u32 {
    let holds = |arg: &ArgEq| call.args[usize::from(arg.index)] as u32 == arg.value;
    let is_native = Some(call.architecture) == ARCHITECTURE;
    let mut matching = rules.iter().filter(|rule| {
        is_native && rule.syscall == i64::from(call.number) && rule.args.iter().all(holds)
    });
    match matching.next().map(|rule| rule.action) {
        None | Some(Action::Allow) => libc::SECCOMP_RET_ALLOW,
        Some(Action::Notify) => libc::SECCOMP_RET_USER_NOTIF,
        Some(Action::Errno(number)) => libc::SECCOMP_RET_ERRNO | number as u32,
    }
}

/// xorshift64*, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

const VALUES: [u32; 6] = [0, 1, 34, 40, 0x7b9, u32::MAX];

#[test]
fn random_calls_get_what_a_plain_reading_of_random_rules_says() {
    let foreign = [0x4000_0003, 0xC000_00B7, 0xC000_003E, 0];
    for seed in 1..=400 {
        let mut random = Random(seed);
        let mut args = Vec::new();
        for _ in 0..random.below(200) {
            let arg = |random: &mut Random| ArgEq {
                index: random.below(6) as u8,
                value: random.pick(&VALUES),
            };
            args.push(
                (0..random.below(4))
                    .map(|_| arg(&mut random))
                    .collect::<Vec<_>>(),
            );
        }
        let rules: Vec<_> = args
            .iter()
            .map(|args| Rule {
                // Few numbers: long blocks.
                syscall: random.below(1 + seed % 7) as i64,
                args,
                action: random.pick(&[
                    Action::Allow,
                    Action::Notify,
                    Action::Notify,
                    Action::Errno(1),
                    Action::Errno(4095),
                ]),
            })
            .collect();
        let filter = Filter::build(&rules).unwrap();
        for _ in 0..200 {
            let mut call = Call {
                number: random.below(9) as u32,
                architecture: ARCHITECTURE.unwrap(),
                args: [0; 6],
            };
            if random.below(8) == 0 {
                call.architecture = random.pick(&foreign);
            }
            if random.below(8) == 0 {
                call.number |= X32 as u32;
            }
            for arg in &mut call.args {
                // The kernel ignores the high half of an int.
                *arg = random.below(3) << 32 | u64::from(random.pick(&VALUES));
            }
            let (action, _) = interpret(filter.program(), &call);
            assert_eq!(action, expected(&rules, &call), "seed {seed}: {call:?}");
        }
    }
}

#[test]
fn every_jump_of_a_long_program_ends_inside_it() {
    // More instructions for one number than a condition can skip.
    let args: Vec<_> = (0..200).map(|value| [ArgEq { index: 0, value }]).collect();
    let rule = |(syscall, args)| Rule {
        syscall,
        args,
        action: Action::Notify,
    };
    let rules: Vec<_> = args.iter().map(|args| rule((7, &args[..]))).collect();
    let more: Vec<_> = rules.iter().copied().chain([rule((8, &[]))]).collect();
    let filter = Filter::build(&more).unwrap();
    let run = |number, first| {
        let mut call = Call {
            number,
            architecture: ARCHITECTURE.unwrap(),
            args: [0; 6],
        };
        call.args[0] = first;
        interpret(filter.program(), &call).0
    };
    assert_eq!(run(7, 199), libc::SECCOMP_RET_USER_NOTIF);
    assert_eq!(run(7, 200), libc::SECCOMP_RET_ALLOW);
    assert_eq!(run(8, 200), libc::SECCOMP_RET_USER_NOTIF);
    assert_eq!(run(9, 0), libc::SECCOMP_RET_ALLOW);
}

#[test]
fn a_call_without_a_rule_is_decided_by_its_number_alone() {
    // That is what lets the kernel skip the program for it.
    let first = [ArgEq {
        index: 0,
        value: 40,
    }];
    let rules = [
        Rule {
            syscall: libc::SYS_socket,
            args: &first,
            action: Action::Notify,
        },
        Rule {
            syscall: libc::SYS_connect,
            args: &[],
            action: Action::Notify,
        },
    ];
    let filter = Filter::build(&rules).unwrap();
    let (mut next, mut loads) = (0, 0);
    let program = filter.program();
    let call = Call {
        number: libc::SYS_read as u32,
        architecture: ARCHITECTURE.unwrap(),
        args: [0; 6],
    };
    let (_, count) = interpret(program, &call);
    // Architecture, number, and a comparison for each.
    assert_eq!(count, 2 + 1 + rules.len() + 1);
    while next < program.len() {
        loads += usize::from(u32::from(program[next].code) == BPF_LD | BPF_W | BPF_ABS);
        next += 1;
    }
    assert_eq!(loads, 3);
    assert_eq!(filter.notified(), [libc::SYS_socket, libc::SYS_connect]);
}

#[test]
fn numbers_that_do_not_exist_and_programs_that_are_too_long_are_no_filter() {
    let rule = |syscall, args, action| Rule {
        syscall,
        args,
        action,
    };
    let seventh = [ArgEq { index: 6, value: 0 }];
    let first = [ArgEq { index: 0, value: 0 }; 7];
    for odd in [
        rule(-1, &[], Action::Notify),
        rule(X32, &[], Action::Notify),
        rule(i64::MAX, &[], Action::Notify),
        rule(1, &seventh, Action::Notify),
        rule(1, &first, Action::Notify),
        rule(1, &[], Action::Errno(0)),
        rule(1, &[], Action::Errno(-1)),
        rule(1, &[], Action::Errno(4096)),
    ] {
        let error = Filter::build(&[odd]).unwrap_err();
        assert_eq!(error, FilterError::OutOfRange, "{odd:?}");
    }
    let many = |count| Filter::build(&vec![rule(1, &first[..1], Action::Notify); count]);
    assert!(many(1300).is_ok());
    for count in [1400, 40_000] {
        assert_eq!(many(count).unwrap_err(), FilterError::TooManyRules);
    }
    assert!(Filter::build(&[]).unwrap().program().len() < 8);
}

#[test]
fn calls_of_other_architectures_are_told_from_native_ones() {
    let own = ARCHITECTURE.unwrap();
    assert!(is_native(own, libc::SYS_socket));
    assert!(!is_native(own ^ 1, libc::SYS_socket));
    // i386, and x32 with the number of its own.
    assert!(!is_native(0x4000_0003, 359));
    assert!(!is_native(own, libc::SYS_socket | X32));
}

//! The kernels by which limits are measured do the work that is counted.

mod emulated;

use cuda::{Arguments, Driver, Grid, Kernel};
use emulated::Emulated;

const GRID: Grid = Grid { blocks: [2, 1, 1], threads: 64, shared: 0 };

fn run(gpu: &Emulated, name: &'static str, arguments: &Arguments) {
    gpu.launch(Kernel { file: "limits", name }, GRID, arguments).expect("a launch");
}

#[test]
fn all_is_copied_and_read() {
    let Some(gpu) = Emulated::new(0) else { return };
    // In rounds of 4 and 8 per thread, and what is left of them.
    for count in [0usize, 1, 127, 512, 1024 + 512 + 77] {
        let from: Vec<u8> = (0..16 * count).map(|i| (i * 31 % 251) as u8).collect();
        let room = from.len().max(16);
        let [a, b] = [gpu.alloc(room), gpu.alloc(room)].map(|at| at.expect("memory"));
        gpu.write(a, &from).expect("a write");
        run(&gpu, "limits_copy", &Arguments::new().address(b).address(a).long(count));
        let mut copy = vec![0; from.len()];
        gpu.read(b, &mut copy).expect("a copy");
        assert!(copy == from, "{count}");
        // A sum that was told before is written by whoever finds it, so here the sums of single threads are told.
        let word = |i: usize| u32::from_le_bytes(from[4 * i..4 * i + 4].try_into().expect("four bytes"));
        let of_thread = |thread: usize| {
            let all = (thread..count).step_by(128).map(|at| (0..4).fold(0, |sum, i| sum ^ word(4 * at + i)));
            all.fold(0u32, u32::wrapping_add)
        };
        for thread in [0, 5, 127] {
            gpu.write(b, &[0xab; 4]).expect("a write");
            let sum = of_thread(thread);
            run(&gpu, "limits_read", &Arguments::new().address(b).address(a).long(count).count(sum as usize));
            let mut told = [0; 4];
            gpu.read(b, &mut told).expect("a sum");
            assert_eq!(u32::from_le_bytes(told), sum, "{count}, thread {thread}");
        }
        [a, b].into_iter().for_each(|at| gpu.free(at));
    }
}

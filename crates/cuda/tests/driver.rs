//! What stands between a device and NVIDIA's libraries, tried with libraries that stand for them. A process loads a library once,
//! so each test runs in a process of its own.

use std::process::Command;

use cuda::{
    Arguments, CubinCache, CudaDevice, Driver, Fault, Gpu, Grid, Kernel, NvidiaDriver, Reduction, Usable,
    kernels, probe,
};
use tensor::{DType, Device, Program, ReductionTree, ReferenceTensor, WeightFormat};

mod process;
use process::{counted, driver, graph_launches, with_libraries};

#[test]
fn a_machine_without_a_driver_says_what_was_looked_for() {
    // What this machine has is what it has; without libraries of ours.
    match probe() {
        Ok(gpus) => assert!(!gpus.is_empty()),
        Err(Fault(error)) => {
            assert!(error.starts_with("no NVIDIA driver: looked for libcuda.so.1"), "{error}");
            assert_eq!(error.lines().count(), 1);
            assert!(Gpu::open(0, &CubinCache::none()).is_err_and(|fault| fault.0 == error));
        }
    }
}

#[test]
fn gpus_are_told() {
    with_libraries("gpus_are_told", &[], || {
        let gpus = probe().expect("a GPU");
        let told: Vec<String> = gpus.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["GPU 0: Fake GPU, 86 GB, compute capability 9.0, 2 multiprocessors"]);
        let error = Gpu::open(1, &CubinCache::none()).err().expect("there is one GPU");
        assert_eq!(error.0, "there is no GPU 1: this process may use 1, from 0");
    });
}

/// A toolkit has a libcuda.so for machines that only build: all its functions say that there is no driver.
#[test]
fn a_toolkits_library_before_the_drivers_is_named() {
    let Some(folder) = process::fake::libraries() else { return };
    let stubs = tempfile::tempdir().expect("a folder");
    let names = include_str!("../src/nvidia/api.rs").lines().filter_map(|line| {
        let name = line.trim().strip_prefix('"')?.strip_suffix("\",")?;
        name.starts_with("cu").then(|| format!("int {name}() {{ return 34; }}\n"))
    });
    let (source, library) = (stubs.path().join("stubs.c"), stubs.path().join("libcuda.so"));
    std::fs::write(&source, names.collect::<String>() + "int cuEventElapsedTime() { return 34; }")
        .expect("a source");
    let compiler = std::env::var("CXX").unwrap_or("c++".into());
    let made =
        Command::new(compiler).args(["-shared", "-fPIC", "-x", "c", "-o"]).args([&library, &source]).status();
    assert!(made.expect("a compiler").success());
    let path = format!("{}:{}", stubs.path().display(), process::fake::search_path(folder).display());
    with_libraries("a_toolkits_library_before_the_drivers_is_named", &[("LD_LIBRARY_PATH", &path)], || {
        let told = probe().expect_err("calls would go to the stubs").0;
        let began = "libcuda.so is another library than libcuda.so.1: ";
        assert!(told.starts_with(began) && told.contains("stubs") && told.lines().count() == 1, "{told}");
        assert_eq!(cuda::broken_driver(), Some(Fault(told)));
    });
}

/// As a display's card beside the one that computes.
#[test]
fn gpus_that_are_too_old_are_passed_over() {
    let variables = [("FAKE_GPUS", "3"), ("FAKE_OLD_GPU", "0")];
    with_libraries("gpus_that_are_too_old_are_passed_over", &variables, || {
        let Usable { gpus, passed_over } = cuda::usable().expect("two of them");
        assert_eq!(gpus.iter().map(|gpu| gpu.ordinal).collect::<Vec<_>>(), [1, 2]);
        let why = "Fake GPU cannot be used: its compute capability is 7.5; the kernels need 8.0";
        assert_eq!(passed_over, [format!("GPU 0 is passed over: {why}")]);
        assert_eq!(Gpu::open(0, &CubinCache::none()).err(), Some(Fault(why.into())));
        assert!(Gpu::open(2, &CubinCache::none()).is_ok());
    });
}

#[test]
fn kernels_are_compiled_once() {
    with_libraries("kernels_are_compiled_once", &[], || {
        let compiled = || counted("libnvrtc.so.13", "fake_compiled") as usize;
        let cache = CubinCache::of_user();
        let files: Vec<&str> = kernels::FILES.iter().map(|(file, _)| *file).collect();
        for _ in 0..2 {
            let gpu = Gpu::open(0, &cache).expect("the GPU");
            gpu.load(&files).expect("kernels");
            gpu.load(&files).expect("the same kernels");
            assert_eq!(compiled(), files.len());
        }
    });
}

#[test]
fn what_does_not_compile_is_told_with_its_line() {
    with_libraries("what_does_not_compile_is_told_with_its_line", &[("FAKE_ERROR", "1")], || {
        let gpu = Gpu::open(0, &CubinCache::none()).expect("the GPU");
        let error = gpu.load(&["elements", "norm"]).expect_err("it does not compile").0;
        let wanted = "norm.cu, compiled for sm_90a: libnvrtc: NVRTC_ERROR_COMPILATION\n\
                      norm.cu(12): error: expected a \";\"";
        assert_eq!(error, wanted);
    });
}

#[test]
fn operations_that_come_again_are_replayed_with_the_new_numbers() {
    with_libraries("operations_that_come_again_are_replayed_with_the_new_numbers", &[], || {
        for enforce_eager in [false, true] {
            let dev = CudaDevice::new(Box::new(driver(enforce_eager)));
            let before = graph_launches();
            let x = dev.upload(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 4, 2);
            for step in 0..6 {
                // Uploads of a step use the same memory again; each must have been read before the next comes.
                let rows = [step % 4, (step + 1) % 4];
                let mut sum = dev.gather_rows(&x, &rows);
                for more in 0..4 {
                    let other = dev.gather_rows(&x, &[(step + more) % 4, more]);
                    dev.add(&mut sum, &other);
                }
                let row = |r: u32| [2.0 * r as f32 + 1.0, 2.0 * r as f32 + 2.0];
                let mut expected = [row(rows[0]), row(rows[1])];
                for more in 0..4 {
                    for (sum, r) in expected.iter_mut().zip([(step + more) % 4, more]) {
                        (0..2).for_each(|i| sum[i] += row(r)[i]);
                    }
                }
                assert_eq!(dev.download(&sum).expect("numbers"), expected.concat(), "step {step}");
            }
            let graphs = graph_launches() - before;
            assert_eq!(graphs > 0, !enforce_eager, "{graphs} of 6 steps were graphs");
        }
    });
}

#[test]
fn what_is_larger_than_all_that_is_on_its_way_arrives() {
    with_libraries("what_is_larger_than_all_that_is_on_its_way_arrives", &[], || {
        for enforce_eager in [false, true] {
            let driver = driver(enforce_eager);
            let bytes: Vec<u8> =
                (0..40_000_001u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            let at = driver.alloc(bytes.len()).expect("memory");
            let copy = driver.alloc(bytes.len()).expect("memory");
            driver.write(at, &[1; 100]).expect("a small write");
            driver.write(at, &bytes).expect("a large write behind it");
            driver.write(at + 7, &bytes[7..9_000]).expect("a small write");
            driver.copy(at, copy, bytes.len()).expect("a copy");
            let mut read = vec![0; bytes.len()];
            driver.read(copy, &mut read).expect("bytes");
            assert!(read == bytes, "other bytes came back");
            driver.free(at);
            driver.free(copy);
        }
    });
}

#[test]
fn graphs_that_follow_each_other_at_once_have_their_own_numbers() {
    with_libraries("graphs_that_follow_each_other_at_once_have_their_own_numbers", &[], || {
        let driver = driver(false);
        let memory = |bytes| driver.alloc(bytes).expect("memory");
        let (sum, number, large) = (memory(4), memory(4), memory(1 << 20));
        driver.write(sum, &0f32.to_le_bytes()).expect("a write");
        for step in 0..8 {
            driver.write(number, &(step as f32).to_le_bytes()).expect("a write");
            for _ in 0..8 {
                let arguments = Arguments::new().address(sum).address(number).long(1).long(1);
                let add = Kernel { file: "elements", name: "add" };
                driver
                    .launch(add, Grid { blocks: [1, 1, 1], threads: 32, shared: 0 }, &arguments)
                    .expect("a launch");
            }
            // It hands over what was collected and waits for nothing.
            driver.write(large, &[0; 1 << 20]).expect("a large write");
            // By then it is a graph.
            if step == 2 {
                driver.finish().expect("they run");
            }
        }
        let mut read = [0; 4];
        driver.read(sum, &mut read).expect("a number");
        assert_eq!(f32::from_le_bytes(read), 8.0 * 28.0);
        assert_eq!(graph_launches(), 5);
    });
}

/// Scalings in one of many lists.
fn scalings(list: usize) -> usize {
    8 * (list + 1)
}

/// How many of so many lists are known: as many of the last as have 65,536 pieces of work.
fn known(lists: usize) -> usize {
    let mut work = 0;
    let fits = |list: &usize| {
        work += scalings(*list);
        work <= 1 << 16
    };
    (0..lists).rev().take_while(fits).count()
}

/// As the first stages of a pipeline, which only hand on. Each number of scalings is a list of its own, which comes twice.
fn many_lists(driver: &NvidiaDriver, at: u64, lists: std::ops::Range<usize>) -> Result<(), Fault> {
    let kernel = Kernel { file: "elements", name: "scale" };
    let arguments = Arguments::new().address(at).long(1).float(1.0);
    for times in lists.flat_map(|list| [scalings(list); 2]) {
        for _ in 0..times {
            driver.launch(kernel, Grid { blocks: [1, 1, 1], threads: 32, shared: 0 }, &arguments)?;
        }
        driver.rest()?;
    }
    Ok(())
}

#[test]
fn graphs_of_who_never_reads_make_room_for_others() {
    with_libraries("graphs_of_who_never_reads_make_room_for_others", &[], || {
        let driver = driver(false);
        let at = driver.alloc(4).expect("memory");
        driver.write(at, &3f32.to_le_bytes()).and_then(|()| driver.finish()).expect("a write");
        let alive = || counted("libcuda.so.1", "fake_graphs_alive") as usize;
        many_lists(&driver, at, 0..128).expect("lists");
        assert_eq!(alive(), known(128));
        for lists in [128..140, 140..160] {
            many_lists(&driver, at, lists.clone()).expect("lists");
            assert_eq!(alive(), known(lists.end));
        }
        let mut read = [0; 4];
        driver.read(at, &mut read).expect("a number");
        assert_eq!((f32::from_le_bytes(read), alive()), (3.0, known(160)));
        drop(driver);
        assert_eq!(alive(), 0);
    });
}

#[test]
fn a_fault_that_shows_where_room_is_made_names_its_kernel() {
    with_libraries("a_fault_that_shows_where_room_is_made_names_its_kernel", &[], || {
        let driver = driver(false);
        let at = driver.alloc(4).expect("memory");
        many_lists(&driver, at, 0..128).expect("lists");
        driver.finish().expect("all is done");
        // They write to nobody's memory.
        let Fault(told) =
            many_lists(&driver, 64, 128..145).expect_err("somebody waits before they are all there");
        let began = "unspecified launch failure (CUDA_ERROR_LAUNCH_FAILED), in one of ";
        assert!(told.starts_with(began) && told.contains(" kernels up to scale"), "{told}");
    });
}

#[test]
fn very_many_rows_are_multiplied_by_the_library() {
    with_libraries("very_many_rows_are_multiplied_by_the_library", &[], || {
        let dev = CudaDevice::with(Box::new(driver(false)), Reduction::Fast);
        let other = CudaDevice::new(Box::new(driver(false)));
        let value = |row: usize, col: usize| ((row * 31 + col * 17) % 41) as f32 / 16.0 - 1.25;
        let (rows, n, k) = (513, 36, 96);
        let tree = ReductionTree::over_granules(k, 3);
        // One node, and two that are not merged here.
        let programs = [None, Some(tree.program(0..3)), Some(tree.program(1..3))];
        let x: Vec<f32> = (0..rows * k).map(|at| value(at / k + 7, at % k)).collect();
        for format in [DType::BF16.into(), DType::F16.into(), WeightFormat::Fp8] {
            let mut times = Vec::new();
            for program in &programs {
                let k = program.as_ref().map_or(k, Program::num_inputs);
                let bias: Vec<f32> = (0..n).map(|col| value(3, col)).collect();
                let run = |dev: &CudaDevice| {
                    let w = dev.pack(&ReferenceTensor::from_fn(n, k, value), format.into());
                    let x = dev.upload(&x[..rows * k], rows, k);
                    let y = match program {
                        None => dev.linear(&x, &w, Some(&dev.upload(&bias, 1, n))),
                        Some(program) => dev.linear_tree(&x, &w, program),
                    };
                    dev.download(&y).expect("numbers")
                };
                let before = counted("libcublasLt.so.13", "fake_multiplied");
                let (found, expected) = (run(&dev), run(&other));
                times.push(counted("libcublasLt.so.13", "fake_multiplied") - before);
                assert_eq!(found.len(), expected.len());
                let is_near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4;
                assert!(found.iter().zip(&expected).all(is_near), "{format}, {program:?}");
            }
            let nodes = programs[2].as_ref().map_or(1, Program::num_nodes) as u32;
            assert_eq!(times, [1, 1, nodes], "{format}");
        }
    });
}

#[test]
fn products_of_the_library_are_replayed_with_the_rest() {
    with_libraries("products_of_the_library_are_replayed_with_the_rest", &[], || {
        let dev = CudaDevice::with(Box::new(driver(false)), Reduction::Fast);
        let (rows, n, k) = (512, 16, 32);
        let w = dev
            .pack(&ReferenceTensor::from_fn(n, k, |row, col| ((row + col) % 5) as f32), DType::BF16.into());
        let mut asked = Vec::new();
        for step in 0..5 {
            let x: Vec<f32> = (0..rows * k).map(|at| ((at + step) % 7) as f32).collect();
            let mut x = dev.upload(&x, rows, k);
            // A list that is long enough to be replayed.
            (0..8).for_each(|_| dev.scale(&mut x, 1.0));
            let y = dev.download(&dev.linear(&x, &w, None)).expect("numbers");
            let exact = |row: usize, output: usize| -> f32 {
                (0..k).map(|i| ((row * k + i + step) % 7) as f32 * ((output + i) % 5) as f32).sum()
            };
            for (at, y) in y.into_iter().enumerate() {
                assert_eq!(y, exact(at / n, at % n), "step {step}, element {at}");
            }
            asked.push(counted("libcublasLt.so.13", "fake_asked"));
        }
        assert_eq!(asked, [1; 5], "an algorithm is looked for once");
        // Piece by piece, until what came twice is captured, and from then on replayed.
        assert!(graph_launches() >= 2);
        assert!(counted("libcublasLt.so.13", "fake_multiplied") <= 4);
    });
}

#[test]
fn several_ranks_have_their_own_queues_on_one_gpu() {
    with_libraries("several_ranks_have_their_own_queues_on_one_gpu", &[], || {
        let gpu = Gpu::open(0, &CubinCache::none()).expect("the GPU");
        std::thread::scope(|scope| {
            for rank in 0..3 {
                let gpu = &gpu;
                scope.spawn(move || {
                    let dev = CudaDevice::new(Box::new(gpu.driver(false).expect("a stream")));
                    let mut x = dev.upload(&[rank as f32; 6], 2, 3);
                    dev.scale(&mut x, 2.0);
                    assert_eq!(dev.download(&x).expect("numbers"), [2.0 * rank as f32; 6]);
                });
            }
        });
    });
}

/// A stream's work begins when somebody waits for it, so another's may be behind it; not where all have one queue.
#[test]
fn kernels_may_run_in_the_order_of_their_launches() {
    with_libraries("kernels_may_run_in_the_order_of_their_launches", &[("FAKE_SERIAL", "1")], || {
        let gpu = Gpu::open(0, &CubinCache::none()).expect("the GPU");
        let [first, second] = [(), ()].map(|()| gpu.driver(true).expect("a stream"));
        let at = second.alloc(4).expect("memory");
        second.write(at, &1f32.to_le_bytes()).expect("a write");
        let scale = |driver: &NvidiaDriver, by| {
            let (kernel, arguments) =
                (Kernel { file: "elements", name: "scale" }, Arguments::new().address(at).long(1).float(by));
            let grid = Grid { blocks: [1, 1, 1], threads: 32, shared: 0 };
            driver.launch(kernel, grid, &arguments).expect("a launch");
        };
        let read = || {
            let mut read = [0; 4];
            second.read(at, &mut read).expect("a number");
            f32::from_le_bytes(read)
        };
        assert_eq!(read(), 1.0);
        scale(&first, 3.0);
        scale(&second, 2.0);
        assert_eq!(read(), 6.0);
    });
}

#[test]
fn faults_name_what_asked() {
    with_libraries("faults_name_what_asked", &[], || {
        for enforce_eager in [false, true] {
            let driver = driver(enforce_eager);
            assert_eq!(
                driver.alloc(1_200_000_000).expect_err("too much").0,
                "wanted 1.2 GB, 314.6 MB of 85.9 GB free"
            );
            let grid = |threads| Grid { blocks: [3, 1, 1], threads, shared: 16 };
            let launch = |name, grid, at| {
                let arguments = Arguments::new().address(at).long(1).float(2.0);
                let launched = driver.launch(Kernel { file: "elements", name }, grid, &arguments);
                launched.and_then(|()| driver.read(at, &mut [0; 4]))
            };
            let at = driver.alloc(256).expect("memory");
            assert_eq!(
                launch("nobody", grid(32), at).expect_err("no such kernel").0,
                "no kernel nobody in elements.cu: something is wrong (CUDA_ERROR_NOT_FOUND)"
            );
            assert_eq!(
                launch("scale", grid(2048), at).expect_err("too many threads").0,
                "kernel scale (3 × 1 × 1 blocks of 2048 threads, 16 bytes shared): something is wrong (CUDA_ERROR)"
            );
            // Nobody could be told of what was freed; the next who asks is.
            let (other, scale) =
                (driver.alloc(256).expect("memory"), Kernel { file: "elements", name: "scale" });
            let arguments = Arguments::new().address(at).long(1).float(2.0);
            let launched = driver.launch(scale, grid(2048), &arguments);
            driver.free(other);
            assert!(launched.and_then(|()| driver.read(at, &mut [0; 4])).is_err());
            // What follows a fault at a launch is as if it had not been.
            launch("scale", grid(32), at).expect("a good launch");
            let arguments = Arguments::new().address(64).long(1).float(2.0);
            driver.launch(scale, grid(32), &arguments).expect("nobody has looked yet");
            assert_eq!(
                driver.read(at, &mut [0; 4]).expect_err("it wrote where nothing is").0,
                "unspecified launch failure (CUDA_ERROR_LAUNCH_FAILED), in kernel scale"
            );
        }
    });
}

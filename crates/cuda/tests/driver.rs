//! What stands between a device and NVIDIA's libraries, tried with libraries that stand for them. A process loads a library once,
//! so each test runs in a process of its own.

use std::ffi::{CStr, c_char};
use std::process::Command;
use std::time::Instant;

use cuda::{
    Arguments, CubinCache, CudaDevice, CudaTensor, Driver, Fault, Gpu, Grid, Kernel, NvidiaDriver, kernels,
    probe,
};
use libloading::Library;
use tensor::{Device, Part, PartTimes, What};

mod fake;

/// Set in the process where a test's body runs.
const BODY: &str = "ANYSPLIT_TEST_BODY";

/// Runs the body of the test of this name where those libraries are found, and these variables are set.
fn with_libraries(test: &str, variables: &[(&str, &str)], body: fn()) {
    if std::env::var_os(BODY).is_some() {
        return body();
    }
    let Some(folder) = fake::libraries() else { return };
    // The folder may be there from an earlier run; what that compiled is not to count.
    let cache = tempfile::tempdir().expect("a folder");
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture"])
        .env("LD_LIBRARY_PATH", fake::search_path(folder))
        .env("XDG_CACHE_HOME", cache.path())
        .env(BODY, "1")
        .envs(variables.iter().copied())
        .output()
        .expect("it can be started");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}{told}", String::from_utf8_lossy(&output.stdout));
}

/// A number that a library counts.
fn counted(library: &str, function: &str) -> u32 {
    // SAFETY: it is loaded already.
    let library = unsafe { Library::new(library) }.expect("the library");
    // SAFETY: the function takes nothing and gives a number.
    let count = unsafe { library.get::<unsafe extern "C" fn() -> u32>(function) }.expect("the function");
    // SAFETY: see above.
    unsafe { count() }
}

fn graph_launches() -> u32 {
    counted("libcuda.so.1", "fake_graph_launches")
}

fn driver(enforce_eager: bool) -> NvidiaDriver {
    let gpu = Gpu::open(0, &CubinCache::none()).expect("the GPU");
    gpu.driver(enforce_eager).expect("a stream")
}

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
        for step in 0..6 {
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
        }
        let mut read = [0; 4];
        driver.read(sum, &mut read).expect("a number");
        assert_eq!(f32::from_le_bytes(read), 8.0 * 15.0);
        assert!(graph_launches() >= 4);
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

#[test]
fn faults_name_what_asked() {
    with_libraries("faults_name_what_asked", &[], || {
        for enforce_eager in [false, true] {
            let driver = driver(enforce_eager);
            assert_eq!(
                driver.alloc(1_200_000_000).expect_err("too much").0,
                "wanted 1.2 GB, 0.3 of 86 GB free"
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

#[test]
fn limits_are_measured_once() {
    with_libraries("limits_are_measured_once", &[], || {
        let gpu = Gpu::open(0, &CubinCache::none()).expect("the GPU");
        let limits = gpu.limits().expect("limits");
        let rates = [limits.copy_bytes_per_s, limits.read_bytes_per_s, limits.bf16_flops_per_s];
        // What stands for a GPU is a slow one.
        assert!(rates.iter().all(|rate| (1e4..1e12).contains(rate)), "{limits:?}");
        let launches = [limits.launch, limits.graph_launch].map(|time| time.as_secs_f64());
        assert!(launches.iter().all(|launch| (1e-8..1e-2).contains(launch)), "{limits:?}");
        assert!(graph_launches() > 2, "kernels in graphs are in graphs");
        let before = counted("libcuda.so.1", "fake_marks");
        assert_eq!(gpu.limits(), Ok(limits));
        assert_eq!(counted("libcuda.so.1", "fake_marks"), before);
    });
}

/// A step of a norm's worth of work and a feed-forward network's, which is many times that. What it reads is right.
fn step(dev: &CudaDevice, x: &CudaTensor) {
    dev.span(Part::Step, || {
        let few = dev.span(Part::Norm, || dev.gather_rows(x, &[1, 0]));
        let mut many = dev.span(Part::Ffn, || {
            let mut y = dev.gather_rows(x, &[0; 60_000]);
            (0..8).for_each(|_| dev.scale(&mut y, 1.0));
            dev.gather_rows(&y, &[59_999])
        });
        // Nothing is to be done in it but to wait.
        dev.span(Part::Exchange, || assert_eq!(dev.download(&many).expect("numbers"), [1.0, 2.0]));
        dev.span(Part::Sampling, || {
            dev.add(&mut many, &dev.gather_rows(&few, &[0]));
            assert_eq!(dev.download(&many).expect("numbers"), [4.0, 6.0]);
        });
    });
}

#[test]
fn parts_of_a_step_take_what_the_gpu_takes_eagerly_and_as_graphs() {
    with_libraries("parts_of_a_step_take_what_the_gpu_takes_eagerly_and_as_graphs", &[], || {
        for enforce_eager in [false, true] {
            let before = graph_launches();
            let dev = CudaDevice::new(Box::new(driver(enforce_eager))).watched();
            let x = dev.upload(&[1.0, 2.0, 3.0, 4.0], 2, 2);
            // The first kernel of all takes longer.
            step(&dev, &x);
            dev.take_part_times();
            let mut good = 0;
            for _ in 0..4 {
                let began = Instant::now();
                step(&dev, &x);
                let times = dev.take_part_times();
                assert!(times.total() <= began.elapsed(), "no moment is counted twice");
                let [norm, ffn, exchange] =
                    [Part::Norm, Part::Ffn, Part::Exchange].map(|part| times.of(part).time);
                good += usize::from(ffn > 5 * norm && ffn > 5 * exchange);
            }
            // A loaded machine may hold one up anywhere.
            assert!(good > 0);
            assert_eq!(graph_launches() - before, if enforce_eager { 0 } else { 4 });
            assert_eq!(dev.take_part_times().total(), PartTimes::default().total());
        }
    });
}

#[test]
fn a_step_is_recorded_with_its_operations() {
    with_libraries("a_step_is_recorded_with_its_operations", &[], || {
        for enforce_eager in [false, true] {
            let dev = CudaDevice::new(Box::new(driver(enforce_eager)));
            let x = dev.upload(&[1.0, 2.0, 3.0, 4.0], 2, 2);
            step(&dev, &x);
            let before = counted("libcuda.so.1", "fake_marks");
            step(&dev, &x);
            assert_eq!(counted("libcuda.so.1", "fake_marks"), before, "nobody wanted to know");
            dev.record();
            (0..3).for_each(|_| step(&dev, &x));
            assert!(dev.is_recording());
            let timeline = dev.take_timeline();
            let told = |what: &What| match what {
                What::Part { part, .. } => part.name().to_owned(),
                What::Op { name, made } => format!("{name} {made:?}"),
                What::Wait => "wait".into(),
            };
            let all: Vec<String> = timeline.events.iter().map(|event| told(&event.what)).collect();
            let scales = ["scale None"; 8];
            let ffn = ["ffn", "gather_rows Some([60000, 2])"].into_iter().chain(scales);
            let end =
                ["gather_rows Some([1, 2])", "exchange", "sampling", "gather_rows Some([1, 2])", "add None"];
            let one: Vec<&str> =
                ["step", "norm", "gather_rows Some([2, 2])"].into_iter().chain(ffn).chain(end).collect();
            assert_eq!(all, one.repeat(3));
            let mut open: Vec<tensor::Event> = Vec::new();
            for event in timeline.events {
                open.retain(|outer| outer.ended > event.began);
                assert!(open.iter().all(|outer| outer.ended >= event.ended), "{}", told(&event.what));
                open.push(event);
            }
        }
    });
}

#[test]
fn a_tool_sees_ranges() {
    let body = || {
        let told = || {
            // SAFETY: it is loaded already, and its function gives a text that stays until the next range.
            let library = unsafe { Library::new("libtool.so") }.expect("the tool");
            // SAFETY: see above.
            let told = unsafe { library.get::<unsafe extern "C" fn() -> *const c_char>("fake_ranges") };
            // SAFETY: see above.
            unsafe { CStr::from_ptr(told.expect("its function")()) }.to_str().expect("a text").to_owned()
        };
        let dev = CudaDevice::new(Box::new(driver(false)));
        let x = dev.upload(&[1.0, 2.0, 3.0, 4.0], 2, 2);
        step(&dev, &x);
        let scales = "(scale)".repeat(8);
        let expected = format!(
            "(step(norm(gather_rows))(ffn(gather_rows){scales}(gather_rows))(exchange(launch 15))(sampling(gather_rows)(add)(launch 3)))"
        );
        assert_eq!(told(), expected);
    };
    with_libraries("a_tool_sees_ranges", &[("NVTX_INJECTION64_PATH", "libtool.so")], body);
}

#[test]
fn a_tool_that_is_not_there_is_none() {
    let body = || {
        let dev = CudaDevice::new(Box::new(driver(false)));
        step(&dev, &dev.upload(&[1.0, 2.0, 3.0, 4.0], 2, 2));
    };
    with_libraries(
        "a_tool_that_is_not_there_is_none",
        &[("NVTX_INJECTION64_PATH", "/nowhere/libtool.so")],
        body,
    );
}

//! What is seen of a GPU's work: limits, times of parts, recordings, ranges for tools.

use std::ffi::{CStr, c_char};
use std::time::Instant;

use cuda::{CubinCache, CudaDevice, CudaTensor, Gpu};
use libloading::Library;
use tensor::{Device, Part, PartTimes, What};

mod process;
use process::{counted, driver, graph_launches, with_libraries};

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

#[test]
fn the_rate_of_nvidias_library_is_that_of_its_products() {
    with_libraries("the_rate_of_nvidias_library_is_that_of_its_products", &[], || {
        let gpu = Gpu::open(0, &CubinCache::none()).expect("the GPU");
        let free = || gpu.free_bytes().expect("a number");
        let (before, began) = (free(), Instant::now());
        let rate = cuda::library_rate(&gpu).expect("a rate");
        let seconds = began.elapsed().as_secs_f64();
        // It multiplied what is counted, within the time that it all took, and 16 of the 40 products took the median or longer.
        let products = f64::from(counted("libcublasLt.so.13", "fake_multiplied"));
        assert!(
            products == 40.0 && rate > 0.4 * products * 2.0 * 128f64.powi(3) / seconds,
            "{rate}, {products}"
        );
        assert!(rate < 1e12, "what stands for a GPU is a slow one: {rate}");
        assert_eq!(free(), before);
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
            // The first kernel of all takes longer, and what the first step leaves in memory moves the addresses of the second.
            (0..2).for_each(|_| step(&dev, &x));
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
            assert_eq!(graph_launches() - before, if enforce_eager { 0 } else { 3 });
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

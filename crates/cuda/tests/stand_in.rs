//! What the library that stands for NVIDIA's driver refuses, as the driver does: so what other tests run through is what a driver takes.

use std::ffi::c_void;
use std::mem::zeroed;
use std::ptr::{null_mut, without_provenance_mut};

use cuda::{Arguments, CubinCache, Driver, Gpu, Grid, Kernel};
use cudarc::driver::sys::{self, CUcontext, CUdeviceptr, CUgraph, CUresult, CUstream, CUstreamCaptureMode};

mod process;
use process::{counted, driver, graph_launches, with_libraries};

const REFUSES: (&str, &str) = ("FAKE_REFUSES", "1");
const MODE: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

fn is_fine(result: CUresult) {
    assert_eq!(result, CUresult::CUDA_SUCCESS);
}

/// What a function of the driver writes.
fn made<T>(make: impl FnOnce(*mut T) -> CUresult) -> T {
    // SAFETY: handles and addresses may be zero.
    let mut made = unsafe { zeroed() };
    is_fine(make(&mut made));
    made
}

/// A GPU's context, which becomes the current one, and a stream.
fn context(ordinal: i32) -> (CUcontext, CUstream) {
    // SAFETY: each writes what it makes; contexts are there when they become the current one.
    unsafe {
        is_fine(sys::cuInit(0));
        let context = made(|at| sys::cuDevicePrimaryCtxRetain(at, ordinal));
        is_fine(sys::cuCtxSetCurrent(context));
        (context, made(|at| sys::cuStreamCreate(at, 1)))
    }
}

#[test]
fn what_a_capture_does_not_see_ends_it() {
    with_libraries("what_a_capture_does_not_see_ends_it", &[REFUSES], || {
        let (_, stream) = context(0);
        // SAFETY: places have room for what is written, and streams, events and memory are there.
        unsafe {
            let memory: CUdeviceptr = made(|at| sys::cuMemAlloc_v2(at, 8));
            let pinned: *mut c_void = made(|at| sys::cuMemHostAlloc(at, 8, 0));
            let event = made(|at| sys::cuEventCreate(at, 0));
            let mut pageable = [0u8; 8];
            let mut room: CUdeviceptr = 0;
            let copied = |from: *const c_void| sys::cuMemcpyHtoDAsync_v2(memory, from, 8, stream);
            let mut asked: Vec<(CUresult, Box<dyn FnMut() -> CUresult>)> = Vec::new();
            let mut add = |error, ask: Box<dyn FnMut() -> CUresult>| asked.push((error, ask));
            let unsupported = CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
            add(unsupported, Box::new(move || sys::cuMemAlloc_v2(&mut room, 8)));
            add(unsupported, Box::new(move || sys::cuMemFree_v2(memory)));
            add(unsupported, Box::new(move || sys::cuMemFreeHost(pinned)));
            add(unsupported, Box::new(move || sys::cuStreamSynchronize(stream)));
            add(unsupported, Box::new(move || sys::cuStreamQuery(stream)));
            add(unsupported, Box::new(move || sys::cuEventSynchronize(event)));
            add(unsupported, Box::new(move || copied((&raw mut pageable).cast())));
            for (error, mut ask) in asked {
                is_fine(sys::cuStreamBeginCapture_v2(stream, MODE));
                is_fine(copied(pinned));
                assert_eq!(ask(), error);
                assert_eq!(copied(pinned), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
                let mut graph: CUgraph = without_provenance_mut(8);
                let ended = sys::cuStreamEndCapture(stream, &mut graph);
                assert_eq!(ended, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
                assert!(graph.is_null());
            }
            // Only who began ends it, and others may do what they do.
            is_fine(sys::cuStreamBeginCapture_v2(stream, MODE));
            is_fine(copied(pinned));
            let stream_number = stream as usize;
            let other = std::thread::spawn(move || {
                let (_, own) = context(0);
                is_fine(sys::cuStreamSynchronize(own));
                let mut graph = null_mut();
                sys::cuStreamEndCapture(stream_number as CUstream, &mut graph)
            });
            let of_other = other.join().expect("a thread");
            assert_eq!(of_other, CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
            // An event of the capture is none that comes.
            is_fine(sys::cuEventRecord(event, stream));
            let graph: CUgraph = made(|at| sys::cuStreamEndCapture(stream, at));
            assert_eq!(sys::cuEventSynchronize(event), CUresult::CUDA_ERROR_CAPTURED_EVENT);
            is_fine(sys::cuGraphDestroy(graph));
        }
    });
}

#[test]
fn what_is_of_another_context_or_of_none_is_refused() {
    let test = "what_is_of_another_context_or_of_none_is_refused";
    with_libraries(test, &[REFUSES, ("FAKE_GPUS", "2")], || {
        // SAFETY: places have room for what is written; what is not there any more is what the calls are about.
        unsafe {
            let mut room: CUdeviceptr = 0;
            assert_eq!(sys::cuMemAlloc_v2(&mut room, 8), CUresult::CUDA_ERROR_INVALID_CONTEXT);
            let (first, stream) = context(0);
            let memory: CUdeviceptr = made(|at| sys::cuMemAlloc_v2(at, 8));
            let pinned: *mut c_void = made(|at| sys::cuMemHostAlloc(at, 8, 0));
            let (_, other) = context(1);
            let event = made(|at| sys::cuEventCreate(at, 0));
            assert_eq!(sys::cuEventRecord(event, stream), CUresult::CUDA_ERROR_INVALID_HANDLE);
            // One GPU's work does not use another one's memory, until it reaches that.
            let copied = || sys::cuMemcpyHtoDAsync_v2(memory, pinned, 8, other);
            assert_eq!(copied(), CUresult::CUDA_ERROR_INVALID_VALUE);
            is_fine(sys::cuCtxEnablePeerAccess(first, 0));
            is_fine(copied());
            // What is of a context goes with it.
            is_fine(sys::cuStreamSynchronize(other));
            is_fine(sys::cuDevicePrimaryCtxRelease_v2(0));
            assert_eq!(sys::cuCtxSetCurrent(first), CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED);
            assert_eq!(sys::cuStreamSynchronize(stream), CUresult::CUDA_ERROR_INVALID_HANDLE);
            assert_eq!(sys::cuMemFreeHost(pinned), CUresult::CUDA_ERROR_INVALID_VALUE);
        }
    });
}

#[test]
fn launches_have_the_limits_of_gpus() {
    with_libraries("launches_have_the_limits_of_gpus", &[], || {
        let driver = driver(true);
        let at = driver.alloc(4).expect("memory");
        let launch = |blocks, threads, shared| {
            let arguments = Arguments::new().address(at).long(0).float(2.0);
            let kernel = Kernel { file: "elements", name: "scale" };
            driver.launch(kernel, Grid { blocks, threads, shared }, &arguments)
        };
        launch([1, 1, 1], 256, 226 << 10).expect("all that a block can have");
        let refused = [
            ([1, 1, 1], 256, (226 << 10) + 1),
            ([1, 65_536, 1], 32, 0),
            ([1, 1, 65_536], 32, 0),
            ([0, 1, 1], 32, 0),
            // So many registers may a kernel have that gives no bounds.
            ([1, 1, 1], 288, 0),
        ];
        for (blocks, threads, shared) in refused {
            launch(blocks, threads, shared).expect_err("more than there is");
        }
    });
}

#[test]
fn copies_of_pageable_memory_wait() {
    with_libraries("copies_of_pageable_memory_wait", &[], || {
        let (_, stream) = context(0);
        // SAFETY: places have room for what is written.
        unsafe {
            let memory: CUdeviceptr = made(|at| sys::cuMemAlloc_v2(at, 8));
            let pinned: *mut c_void = made(|at| sys::cuMemHostAlloc(at, 8, 0));
            pinned.cast::<u64>().write(7);
            is_fine(sys::cuMemcpyHtoDAsync_v2(memory, pinned, 8, stream));
            let mut read = 0u64;
            is_fine(sys::cuMemcpyDtoHAsync_v2((&raw mut read).cast(), memory, 8, stream));
            assert_eq!(read, 7);
        }
    });
}

/// Executables are given back with their driver.
#[test]
fn graphs_do_not_outlive_their_driver() {
    with_libraries("graphs_do_not_outlive_their_driver", &[], || {
        let gpu = Gpu::open(0, &CubinCache::none()).expect("the GPU");
        let driver = gpu.driver(false).expect("a stream");
        let at = driver.alloc(4).expect("memory");
        for _ in 0..3 {
            for _ in 0..8 {
                let arguments = Arguments::new().address(at).long(1).float(1.0);
                let kernel = Kernel { file: "elements", name: "scale" };
                driver
                    .launch(kernel, Grid { blocks: [1, 1, 1], threads: 32, shared: 0 }, &arguments)
                    .expect("a launch");
            }
            driver.finish().expect("they run");
        }
        assert!(graph_launches() > 0);
        let alive = || counted("libcuda.so.1", "fake_graphs_alive");
        assert_eq!(alive(), 1);
        driver.free(at);
        drop(driver);
        assert_eq!(alive(), 0);
    });
}

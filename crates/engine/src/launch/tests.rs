//! A rank that fails while the others load ends them all, at once, and its own message is what is reported. One that fails
//! later leaves what it recorded.

use std::path::{Path, PathBuf};
use std::time::Instant;

use checkpoint::{Checkpoint, config_file};
use collective::{Mesh, WireDType};
use cpu::{CpuConfig, CpuDevice};
use model::{ModelConfig, TpPlan};
use tensor::{MOST_EVENTS, SequenceSpan, StepMeta, Timed};

use super::*;

/// Far longer than a test may take: nobody waits for it.
const COMM_TIMEOUT: Duration = Duration::from_secs(60);
const AT_ONCE: Duration = Duration::from_secs(5);
/// Ranks race, so every case is run several times.
const TIMES: usize = 10;

/// Makes devices for all ranks but one.
struct AllBut(Option<usize>);

impl MakeDevice for AllBut {
    type Device = CpuDevice;
    fn make(&self, rank: usize) -> Result<CpuDevice, DeviceError> {
        assert!(self.0 != Some(rank), "no cores are left for it");
        Ok(CpuDevice::new(CpuConfig { threads: 1, cores: None, isa: None, spin: false }))
    }
}

/// Devices that can record.
struct Recording;

impl MakeDevice for Recording {
    type Device = Timed<CpuDevice>;
    fn make(&self, rank: usize) -> Result<Self::Device, DeviceError> {
        let cpu = AllBut(None).make(rank)?;
        let threads = cpu.thread_log();
        Ok(Timed::new(cpu, threads))
    }
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

/// What ranks of a checkpoint are made of.
fn setup<M>(dir: &Path, ranks: usize, plan: &str, make: M) -> Setup<M> {
    let config = ModelConfig::parse(&config_file(dir).unwrap(), None).unwrap();
    let plan = TpPlan::parse(&serde_json::from_str(plan).unwrap()).unwrap();
    let layout = Layout::new(config, &vec![1.0; ranks], &plan).unwrap();
    let source = WeightSource::Files(Checkpoint::open(dir).unwrap());
    let options = LaunchOptions {
        kept: Default::default(),
        kv_dtype: tensor::DType::F32.into(),
        comm_timeout: COMM_TIMEOUT,
        spin: Duration::ZERO,
        host: String::new(),
        grammars: None,
    };
    Setup {
        grouping: Grouping { mesh: Mesh { tp: ranks, ..Mesh::SOLO }, context: 1, wire: WireDType::Float32 },
        stages: vec![Stage::whole(&layout.config)],
        layout,
        source,
        options,
        make,
        loaded_bytes: AtomicU64::new(0),
        left: Some(Left::default()),
    }
}

/// Launches a checkpoint, and gives what became of it.
fn launch_dir(
    dir: &Path,
    ranks: usize,
    plan: &str,
    make: AllBut,
    progress: &dyn Fn(u64),
) -> Result<Ranks<CpuDevice>, EngineError> {
    launch(setup(dir, ranks, plan, make), progress)
}

/// Runs a launch that fails, several times; every time it says the same, at once.
fn fails_with(message: &str, launch: impl Fn() -> Result<Ranks<CpuDevice>, EngineError>) {
    for _ in 0..TIMES {
        let started = Instant::now();
        let error = launch().err().expect("a rank failed");
        let took = started.elapsed();
        assert!(took < AT_ONCE, "after {took:?}: {error}");
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn a_rank_without_a_device_ends_all_with_its_own_message() {
    for failing in 0..4 {
        let launch = || launch_dir(&golden("llama"), 4, "{}", AllBut(Some(failing)), &|_| {});
        fails_with(&format!("rank {failing} stopped: no cores are left for it"), launch);
    }
}

#[test]
fn a_rank_that_stops_halfway_ends_all_with_its_own_message() {
    let halfway = |bytes| assert!(bytes < 20_000, "the bar is broken");
    let launch = || launch_dir(&golden("llama"), 3, "{}", AllBut(None), &halfway);
    fails_with("rank 0 stopped: the bar is broken", launch);
}

#[test]
fn a_rank_that_misses_its_own_weights_ends_all_with_its_own_message() {
    // Whole experts go to ranks, so only the last rank looks for the last expert.
    let plan = r#"{"layers.*.mlp.experts.*.gate_proj": "grouped_gemm", "layers.*.mlp.experts.*.up_proj": "grouped_gemm",
        "layers.*.mlp.experts.*.down_proj": "grouped_gemm"}"#;
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = ("layers.1.mlp.experts.6.down_proj", "layers.1.mlp.experts.6.down_prox");
    for name in ["config.json", "model.safetensors"] {
        let mut bytes = std::fs::read(golden("qwen3_moe").join(name)).unwrap();
        if let Some(at) = bytes.windows(from.len()).position(|window| window == from.as_bytes()) {
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        }
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    for _ in 0..TIMES {
        let started = Instant::now();
        let error = launch_dir(dir.path(), 3, plan, AllBut(None), &|_| {}).err().expect("a rank failed");
        assert!(started.elapsed() < AT_ONCE);
        assert!(error.is_usage());
        let line = error.to_string();
        assert!(line.starts_with("rank 2: no tensor \"model.layers.1.mlp.experts.6.down_proj"), "{line}");
    }
}

#[test]
fn a_single_rank_that_stops_is_an_error_too() {
    let launch = || launch_dir(&golden("llama"), 1, "{}", AllBut(Some(0)), &|_| {});
    fails_with("rank 0 stopped: no cores are left for it", launch);
}

#[test]
fn ranks_that_all_load_are_launched() {
    let mut ranks = launch_dir(&golden("llama"), 4, "{}", AllBut(None), &|_| {}).unwrap();
    assert_eq!(ranks.reports().unwrap().len(), 4);
}

#[test]
fn a_rank_that_fails_without_room_for_more_steps_leaves_those_before() {
    let setup = setup(&golden("llama"), 1, "{}", Recording);
    let groups = groups::of_threads(setup.grouping, &SharedConfig::default()).remove(0);
    let mut worker = load(&setup, groups, &|_| {}).unwrap();
    worker.lead(&Command::AllocateKv { blocks: 1 }).unwrap();
    worker.begin_trace().unwrap();
    let sequences = vec![SequenceSpan { rows: 0..1, start: 0, block_table: vec![0] }];
    let meta = StepMeta { tokens: vec![1], sequences, logit_rows: vec![0] };
    worker.lead(&Command::score(meta, &[2])).unwrap();
    (0..MOST_EVENTS).for_each(|_| worker.dev.span(Part::Text, || ()));
    assert!(!worker.dev.is_recording());
    leave_trace(&setup, &mut worker, &EngineError::Interrupted);
    let left = setup.left.unwrap();
    let [trace] = &left.lock().unwrap()[..] else { panic!("one trace is left") };
    let steps = trace.threads[0].iter().filter(|event| trace.words[event.name as usize] == "step");
    assert_eq!(steps.count(), 1);
    assert!(trace.dropped > 0);
}

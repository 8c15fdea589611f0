//! How fast the kernels of a large model's shape are, as shares of what this GPU does at best: `cuda_bench [--json] [--small]`.
//!
//! Times are the GPU's, of operations that follow each other as in a step and are replayed as graphs: with the conversion of their
//! inputs, and with weights and caches that no cache of the GPU holds. Layers of few rows are measured in canonical order and in
//! whatever order is the fastest. `--small` takes small shapes, to try the program itself.
//!
//! Exit status: 1 if the GPU fails, 2 if there is none.

use std::ops::Range;
use std::process::ExitCode;
use std::time::Duration;

use cuda::{CubinCache, CudaDevice, Fault, Gpu, GpuLimits, Reduction};
use tensor::{
    AttentionSpec, DType, Device, DeviceError, KV_BLOCK, KvShare, KvSpec, MatrixSource, Part, Scales,
    SequenceSpan, StepMeta, WeightFormat, WeightSpec,
};

/// Llama-3.1-8B's layers, [outputs, inputs].
const LAYERS: [(&str, [usize; 2]); 5] = [
    ("qkv", [6144, 4096]),
    ("o", [4096, 4096]),
    ("gate+up", [28672, 4096]),
    ("down", [4096, 14336]),
    ("head", [128256, 4096]),
];
/// Of so many bytes no cache of a GPU keeps much until they are read again.
const BEYOND_CACHES: usize = 200 << 20;
/// The first two times a list is not replayed yet.
const WARM_UPS: usize = 3;
const REPEATS: usize = 5;
const PROMPT: usize = 4096;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = args.iter().find(|arg| !["--json", "--small"].contains(&arg.as_str())) {
        eprintln!("error: {unknown:?} is not understood; cuda_bench [--json] [--small]");
        return ExitCode::from(2);
    }
    let has = |name: &str| args.iter().any(|arg| arg == name);
    let first = cuda::usable().map(|found| found.gpus[0].ordinal);
    let gpu = match first.and_then(|ordinal| Gpu::open(ordinal, &CubinCache::of_user())) {
        Ok(gpu) => gpu,
        Err(Fault(why)) => {
            eprintln!("error: {why}");
            return ExitCode::from(2);
        }
    };
    let divisor = if has("--small") { 32 } else { 1 };
    let measured = |reduction| -> Result<Vec<Row>, String> {
        let limits = gpu.limits().map_err(|Fault(why)| why)?;
        let driver = gpu.driver(false).map_err(|Fault(why)| why)?;
        let bench = Bench { dev: CudaDevice::with(Box::new(driver), reduction).watched(), limits, divisor };
        bench.all().map_err(|error| error.to_string())
    };
    let rows =
        [Reduction::Canonical, Reduction::Fast].into_iter().map(measured).collect::<Result<Vec<_>, _>>();
    let rows = rows.map(|rows| rows.concat());
    match rows {
        Ok(rows) if has("--json") => {
            let rows: Vec<String> = rows.iter().map(Row::json).collect();
            println!("{{\"gpu\":\"{}\",\"rows\":[{}]}}", gpu.info.name, rows.join(","));
            ExitCode::SUCCESS
        }
        Ok(rows) => {
            println!("{}", gpu.info);
            rows.iter().for_each(|row| println!("{}", row.line()));
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

/// What came of one measurement.
#[derive(Clone)]
struct Row {
    name: String,
    kind: &'static str,
    us: f64,
    /// The rate, what it is of, and its share of the limit.
    rate: (f64, &'static str, &'static str, f64),
}

impl Row {
    fn json(&self) -> String {
        let Row { name, kind, us, rate: (rate, unit, of, share) } = self;
        let unit = unit.to_lowercase().replace('/', "_");
        format!("{{\"name\":\"{name}\",\"kind\":\"{kind}\",\"us\":{us},\"{unit}\":{rate},\"{of}\":{share}}}")
    }

    fn line(&self) -> String {
        let Row { name, us, rate: (rate, unit, of, share), .. } = self;
        format!(
            "{name:<32}{us:>10.1} µs{rate:>10.1} {unit:<8}{:>6.1} % {}",
            100.0 * share,
            of.replace('_', " ")
        )
    }
}

/// Numbers that are as many as one likes and cost nothing to make.
struct Numbers {
    shape: [usize; 2],
    some: Vec<f32>,
}

impl Numbers {
    fn new(shape: [usize; 2]) -> Self {
        let number = |i: u32| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 - 0.5;
        Numbers { shape, some: (0..shape[1] as u32 + 61).map(number).collect() }
    }
}

impl MatrixSource for Numbers {
    fn rows(&self) -> usize {
        self.shape[0]
    }
    fn cols(&self) -> usize {
        self.shape[1]
    }
    fn read(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        out.copy_from_slice(&self.some[row % 61 + cols.start..row % 61 + cols.end]);
    }
    fn read_elements(&self, row: usize, cols: Range<usize>, out: &mut [u8]) {
        // All but NaN.
        out.iter_mut().zip(cols).for_each(|(out, col)| *out = ((row + col) * 89 % 127) as u8);
    }
    fn scale(&self, _: usize, _: usize) -> f32 {
        1.0 / 1024.0
    }
}

struct Bench {
    dev: CudaDevice,
    limits: GpuLimits,
    /// Of every size.
    divisor: usize,
}

impl Bench {
    fn all(&self) -> Result<Vec<Row>, DeviceError> {
        let bf16 = WeightFormat::Float(DType::BF16);
        // In whatever order, few rows have kernels of their own; the rest has those of canonical sums, or is not ours.
        let is_canonical = self.dev.reduction() == Reduction::Canonical;
        let mut rows = Vec::new();
        for (name, shape) in LAYERS {
            rows.extend(self.layer(name, shape, ("bf16", bf16), is_canonical && name != "head")?);
        }
        let scaled = |scales: Option<Scales>| WeightFormat::Scaled(scales.expect("whole groups"));
        for (format, of_prompts) in [
            (("fp8", WeightFormat::Fp8), false),
            (("e4m3", scaled(Some(Scales::OUTPUT))), true),
            (("e4m3/128", scaled(Scales::every(128, None))), false),
            (("int8", WeightFormat::Int8), false),
            (("int4", WeightFormat::Int4), false),
        ] {
            for (name, shape) in [LAYERS[0], LAYERS[2]] {
                rows.extend(self.layer(name, shape, format, is_canonical && of_prompts)?);
            }
        }
        if !is_canonical {
            return Ok(rows);
        }
        for context in [1024, 8192] {
            rows.push(self.attention(context)?);
        }
        Ok(rows)
    }

    /// How long the GPU takes for some work each time that it is asked for, at best.
    fn time(&self, work: impl Fn()) -> Result<Duration, DeviceError> {
        let end = self.dev.upload(&[0.0], 1, 1);
        let once = || -> Result<Duration, DeviceError> {
            self.dev.enter(Part::Step);
            self.dev.span(Part::Ffn, &work);
            let read = self.dev.span(Part::Sampling, || self.dev.download(&end));
            self.dev.leave();
            let times = self.dev.take_part_times();
            read.map(|_| times.of(Part::Ffn).time)
        };
        (0..WARM_UPS).try_for_each(|_| once().map(drop))?;
        let times = (0..REPEATS).map(|_| once()).collect::<Result<Vec<Duration>, _>>()?;
        Ok(times.into_iter().min().unwrap_or_default())
    }

    /// A layer with one row and eight, and, if `of_prompts`, those of a prompt.
    fn layer(
        &self,
        name: &str,
        [n, k]: [usize; 2],
        (format, weights): (&str, WeightFormat),
        of_prompts: bool,
    ) -> Result<Vec<Row>, DeviceError> {
        let [n, k] = [n, k].map(|x| (x / self.divisor).next_multiple_of(64));
        let (dev, spec, source) = (&self.dev, WeightSpec::from(weights), Numbers::new([n, k]));
        let first = dev.pack(&source, spec);
        let bytes = dev.packed_bytes(&first);
        let copies = (BEYOND_CACHES / self.divisor / self.divisor).div_ceil(bytes);
        let all: Vec<_> =
            std::iter::once(first).chain((1..copies).map(|_| dev.pack(&source, spec))).collect();
        let prompt = of_prompts.then_some(PROMPT / self.divisor);
        let time = |rows: usize| {
            let x = dev.upload(&vec![0.5; rows * k], rows, k);
            let time = self.time(|| all.iter().for_each(|w| drop(dev.linear(&x, w, None))))?;
            Ok(time.as_secs_f64() / all.len() as f64)
        };
        let mut rows = Vec::new();
        let (kind, order) = match dev.reduction() {
            Reduction::Canonical => ("gemv", ""),
            Reduction::Fast => ("fast gemv", "fast: "),
        };
        for count in [1, 8] {
            let moved = bytes + 4 * count * (n + k);
            let name = format!("{order}{name} {format}, rows {count}");
            rows.push(self.of_copy(name, kind, time(count)?, moved));
        }
        if let Some(count) = prompt {
            let (seconds, flops) = (time(count)?, 2.0 * (count * n * k) as f64);
            let share = flops / seconds / self.limits.bf16_flops_per_s;
            let rate = (flops / seconds / 1e12, "TFLOP/s", "of_bf16", share);
            rows.push(Row {
                name: format!("{name} {format}, rows {count}"),
                kind: "gemm",
                us: 1e6 * seconds,
                rate,
            });
        }
        Ok(rows)
    }

    fn of_copy(&self, name: String, kind: &'static str, seconds: f64, bytes: usize) -> Row {
        let rate = bytes as f64 / seconds;
        Row {
            name,
            kind,
            us: 1e6 * seconds,
            rate: (rate / 1e9, "GB/s", "of_copy", rate / self.limits.copy_bytes_per_s),
        }
    }

    /// A sequence's attention behind so many positions.
    fn attention(&self, context: usize) -> Result<Row, DeviceError> {
        let context = (context / self.divisor).next_multiple_of(KV_BLOCK);
        let spec = AttentionSpec {
            num_heads: 32,
            num_kv_heads: 8,
            group: 4,
            first_in_group: 0,
            head_dim: 128,
            scale: 0.088,
            softcap: None,
            window: None,
        };
        let blocks = context / KV_BLOCK;
        let kv = KvSpec {
            blocks,
            share: KvShare::WHOLE,
            num_kv_heads: 8,
            head_dim: 128,
            dtype: DType::BF16.into(),
        };
        let bytes = context * 2 * 8 * 128 * 2;
        let copies = (BEYOND_CACHES / self.divisor / self.divisor).div_ceil(bytes);
        let step = |rows: usize, start: usize| {
            let table = (0..blocks as u32).collect();
            let sequences = vec![SequenceSpan { rows: 0..rows, start, block_table: table }];
            self.dev.begin(&StepMeta { tokens: vec![0; rows], sequences, logit_rows: Vec::new() })
        };
        let (dev, cols) = (&self.dev, spec.qkv_cols());
        let whole = dev.upload(&vec![0.25; context * cols], context, cols);
        let filled = step(context, 0);
        let all: Vec<_> = (0..copies)
            .map(|_| {
                let mut cache = dev.alloc_kv(kv);
                dev.store_kv(&mut cache, &whole, &filled, &spec);
                cache
            })
            .collect();
        let (last, qkv) = (step(1, context - 1), dev.upload(&vec![0.25; cols], 1, cols));
        let time =
            self.time(|| all.iter().for_each(|cache| drop(dev.attention(&qkv, cache, &last, &spec))))?;
        let seconds = time.as_secs_f64() / all.len() as f64;
        Ok(self.of_copy(format!("attention behind {context}"), "attention", seconds, bytes))
    }
}

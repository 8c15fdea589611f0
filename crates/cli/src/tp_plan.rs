//! `anysplit tp-plan`: how a model would be split, from its config.json alone.

use std::io::Write;

use checkpoint::WeightSource;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use engine::{Plan, weight_bytes};
use model::parallel::{ExpertForm, Module, Part, pattern};
use model::tp_plan::Style;
use model::{KeptAs, Layout, Stage};
use serde_json::{Map, Value, json};
use tensor::DType;

use crate::args::{ModelArgs, yes_or_no};
use crate::error::CliError;
use crate::model::{packed_as, read_config};
use crate::report::{bytes, count};
use crate::split::SplitArgs;

/// Prints how each weight of a model is split, from its config.json alone.
#[derive(Args)]
#[command(after_help = "Examples:\n  anysplit tp-plan --tp 2\n  \
    anysplit tp-plan --model ./OPT-175B --tp 8\n  \
    anysplit tp-plan --model ./Llama-3.1-70B --rank-weights 2,1,1 --json > plan.json\n\n\
    The JSON's \"plan\", or the whole JSON, is what --tp-plan FILE takes back. All layers are shown over one tensor-parallel \
    group; --pp adds the layers and bytes of each stage.")]
pub struct TpPlanArgs {
    /// Prints one JSON value
    #[arg(long, env = "ANYSPLIT_JSON", value_parser = yes_or_no())]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    split: SplitArgs,
}

/// One weight or bias and what each rank has of it.
struct Row {
    pattern: String,
    name: String,
    style: &'static str,
    shape: Vec<usize>,
    /// Shape and bytes.
    ranks: Vec<(Vec<usize>, usize)>,
}

pub fn run(args: &TpPlanArgs) -> Result<(), CliError> {
    let (_, config) = read_config(&args.model)?;
    let kept = packed_as(&args.model)?.unwrap_or(args.model.kept_as());
    let dtype = kept.dtype.or(config.dtype).unwrap_or(DType::F32);
    let kept = KeptAs { dtype: Some(dtype), ..kept };
    args.split.check(&config, true)?;
    let plan = Plan::new(config, &args.split.options(None)?, None)?;
    let layout = &plan.layout;
    let stages = weight_bytes(&plan, &WeightSource::Meta { dtype }, kept)?;
    let rows = rows(layout, kept, dtype);
    let mut out = std::io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", to_json(&plan, &stages, &rows, kept))?,
        false => {
            print(&mut out, &plan, &rows, kept)?;
            print_stages(&mut out, &plan, &stages)?;
        }
    }
    Ok(())
}

fn rows(layout: &Layout, kept: KeptAs, dtype: DType) -> Vec<Row> {
    let mut modules: Vec<(Module, usize)> = Vec::new();
    let outer = layout.outer_modules();
    let (before, behind): (Vec<_>, Vec<_>) =
        outer.into_iter().partition(|m| matches!(m, Module::Embed | Module::Positions));
    modules.extend(before.into_iter().map(|m| (m, 0)));
    for layer in 0..layout.config.num_layers() {
        modules.extend(layout.layer_modules(layer).into_iter().map(|m| (m, layer)));
    }
    modules.extend(behind.into_iter().map(|m| (m, 0)));
    modules.into_iter().flat_map(|(module, layer)| of_module(layout, kept, module, layer, dtype)).collect()
}

fn of_module(layout: &Layout, kept: KeptAs, module: Module, layer: usize, dtype: DType) -> Vec<Row> {
    let spec = layout.spec(module, layer);
    let row = |suffix: &str, shape: Vec<usize>, part: Part| {
        let of_rank = |rank| {
            let held = layout.held(part, &shape, rank);
            let (rows, cols) = (held.num_rows(), held.cols.len());
            match shape.len() {
                1 => (vec![rows], rows * dtype.bytes()),
                _ => {
                    let stored = layout.stored_as(module, layer, dtype);
                    let whole = kept.spec(layout, module, shape[1], stored);
                    (vec![rows, cols], whole.from_input(held.cols.start, shape[1]).bytes(rows, cols))
                }
            }
        };
        Row {
            pattern: pattern(&layout.config, module),
            name: format!("{}.{suffix}", spec.name),
            style: spec.style.name(),
            ranks: (0..layout.ranks()).map(of_rank).collect(),
            shape,
        }
    };
    let bias = spec.bias.map(|part| row("bias", spec.shape[..1].to_vec(), part));
    std::iter::once(row("weight", spec.shape.clone(), spec.part)).chain(bias).collect()
}

fn bytes_per_rank(layout: &Layout, rows: &[Row]) -> Vec<usize> {
    (0..layout.ranks()).map(|rank| rows.iter().map(|row| row.ranks[rank].1).sum()).collect()
}

fn to_json(whole: &Plan, stages: &[Vec<u64>], rows: &[Row], kept: KeptAs) -> Value {
    let layout = &whole.layout;
    // A pattern has the style of its first layer; layers that differ, as a plan can make them, follow by name.
    let mut plan = Map::new();
    for row in rows {
        let style = plan.entry(row.pattern.clone()).or_insert_with(|| row.style.into());
        if *style != *row.style {
            let module = row.name.rsplit_once('.').map_or(&*row.name, |(module, _)| module);
            plan.insert(module.into(), row.style.into());
        }
    }
    let weight = |row: &Row| {
        let rank = |(rank, (shape, bytes)): (usize, &(Vec<usize>, usize))| json!({ "rank": rank, "shape": shape, "bytes": bytes });
        let ranks: Vec<Value> = row.ranks.iter().enumerate().map(rank).collect();
        json!({ "name": row.name, "style": row.style, "shape": row.shape, "ranks": ranks })
    };
    let rank = |rank: usize| {
        let attention = layout.attention(0, rank);
        json!({ "rank": rank, "query_heads": attention.num_heads, "kv_heads": attention.num_kv_heads })
    };
    let stage = |(stage, bytes): (&Stage, &Vec<u64>)| json!({ "layers": [stage.layers.start, stage.layers.end], "bytes_per_rank": bytes });
    json!({
        "tp": layout.ranks(),
        "pp": whole.mesh.pp,
        "dp": whole.mesh.dp,
        "ep": whole.mesh.ep,
        "stages": whole.stages.iter().zip(stages).map(stage).collect::<Vec<_>>(),
        "supported": true,
        "dtype": kept.dtype.map(DType::name),
        "quantization": kept.layers(&layout.config),
        "plan": plan,
        "ranks": (0..layout.ranks()).map(rank).collect::<Vec<_>>(),
        "weights": rows.iter().map(weight).collect::<Vec<_>>(),
        "bytes_per_rank": bytes_per_rank(layout, rows),
    })
}

/// How many experts a rank has of a layer; from the fewest to the most, if layers differ.
fn experts_of_rank(layout: &Layout, rank: usize) -> String {
    let sparse = (0..layout.config.num_layers()).filter(|&layer| layout.config.layers[layer].moe);
    let counts: Vec<usize> = sparse.map(|layer| layout.own_experts(layer, rank).len()).collect();
    match (counts.iter().min(), counts.iter().max()) {
        (Some(fewest), Some(most)) if fewest < most => format!("{fewest}–{most}"),
        (fewest, _) => fewest.copied().unwrap_or(0).to_string(),
    }
}

/// One line per pattern, not per layer: layers differ only where a plan says so, and then both are shown.
fn print(out: &mut impl Write, plan: &Plan, rows: &[Row], kept: KeptAs) -> Result<(), CliError> {
    let (layout, mesh) = (&plan.layout, plan.mesh);
    let times = |n: usize, what: &str| if n > 1 { format!(" × {n} {what}") } else { String::new() };
    let others = times(mesh.pp, "stages") + &times(mesh.dp, "replicas");
    let config = &layout.config;
    writeln!(
        out,
        "{} split over {}{others}: {} layers, {} query heads, {} KV heads, {}",
        config.architecture.name,
        count(layout.ranks(), "rank"),
        config.num_layers(),
        config.num_heads,
        config.num_kv_heads,
        match kept.layers(config) {
            None => kept.to_string(),
            Some(layers) => format!("{layers} (the rest {})", KeptAs { quantization: None, ..kept }),
        },
    )?;
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let ranks = 0..layout.ranks();
    table.set_header(
        ["weight", "style", "shape"]
            .map(String::from)
            .into_iter()
            .chain(ranks.clone().map(|r| format!("rank {r}"))),
    );
    let shape = |shape: &[usize]| shape.iter().map(usize::to_string).collect::<Vec<_>>().join("×");
    let mut seen: Vec<(String, usize, String)> = Vec::new();
    for row in rows {
        let suffix = row.name.rsplit('.').next().unwrap_or_default();
        // Whole experts differ only in where they are, which has a row of its own.
        let whole = row.style == Style::GroupedGemm.name();
        let shown = |(own, _): &(Vec<usize>, usize)| if whole { "whole".into() } else { shape(own) };
        let own = match whole {
            true => String::new(),
            false => row.ranks.iter().map(shown).collect::<Vec<_>>().join(" "),
        };
        let key = (format!("{}.{suffix} {}", row.pattern, row.style), row.shape.iter().product(), own);
        if seen.contains(&key) {
            continue;
        }
        seen.push(key);
        let cells = [format!("{}.{suffix}", row.pattern), row.style.into(), shape(&row.shape)];
        table.add_row(cells.into_iter().chain(row.ranks.iter().map(shown)));
    }
    let attention = |rank: usize| layout.attention(0, rank);
    let line = |what: &str, of: &dyn Fn(usize) -> String| {
        let cells = [what.to_owned(), String::new(), String::new()];
        cells.into_iter().chain(ranks.clone().map(of)).collect::<Vec<_>>()
    };
    let totals = bytes_per_rank(layout, rows);
    table.add_row(line("query heads", &|r| attention(r).num_heads.to_string()));
    table.add_row(line("KV heads", &|r| attention(r).num_kv_heads.to_string()));
    if layout.config.moe.is_some() {
        let whole = layout.styles.experts == ExpertForm::Whole;
        let experts = if whole { "whole experts" } else { "sliced experts" };
        table.add_row(line(experts, &|r| experts_of_rank(layout, r)));
    }
    let whole = if mesh.pp > 1 { "bytes, all stages" } else { "bytes" };
    table.add_row(line(whole, &|r| bytes(totals[r] as u64)));
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    writeln!(out, "{table}")?;
    Ok(())
}

/// One line per stage, where there are several.
fn print_stages(out: &mut impl Write, plan: &Plan, stages: &[Vec<u64>]) -> Result<(), CliError> {
    for (number, (stage, of_ranks)) in plan.stages.iter().zip(stages).enumerate().filter(|_| plan.mesh.pp > 1)
    {
        let (from, to) = (stage.layers.start, stage.layers.end - 1);
        let of_ranks: Vec<String> = of_ranks.iter().map(|&n| bytes(n)).collect();
        writeln!(out, "stage {number}: layers {from}–{to}, {} on its ranks", of_ranks.join(", "))?;
    }
    Ok(())
}

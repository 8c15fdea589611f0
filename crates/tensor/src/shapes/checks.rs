//! What must fit, what it is called, and what it costs.

use std::fmt;

use super::types::ShapeTensor;
use crate::{AttentionSpec, HeadSpan, NormKind, OpCost, Program, RowNorm};

/// The words and the value, where there is one.
pub(super) fn optional(words: &str, value: Option<impl fmt::Display>) -> String {
    value.map_or(String::new(), |value| format!("{words}{value}"))
}

pub(super) fn heads(spec: &AttentionSpec) -> String {
    let AttentionSpec { num_heads, num_kv_heads, group, first_in_group, head_dim, .. } = *spec;
    let place = (first_in_group > 0).then(|| format!("{first_in_group} of {group}"));
    let place = optional(", first in group ", place);
    let window = optional(", window ", spec.window);
    let softcap = optional(", softcap ", spec.softcap);
    format!("heads {num_heads}/{num_kv_heads} of {head_dim}{place}{window}{softcap}")
}

pub(super) fn nodes_of(program: &Program) -> String {
    match program.num_nodes() {
        1 => "1 node".into(),
        nodes => format!("{nodes} nodes"),
    }
}

/// Costs by numbers of elements.
pub(super) fn cost(flops: usize, activations: usize) -> OpCost {
    OpCost { calls: 1, flops: flops as u64, activation_bytes: 4 * activations as u64, ..OpCost::default() }
}

pub(super) fn norm_flops(kind: NormKind) -> usize {
    match kind {
        NormKind::Rms { .. } => 4,
        NormKind::Layer => 7,
    }
}

/// How many weights a norm has.
pub(super) fn norm_fits(op: &str, norm: RowNorm<'_, ShapeTensor>, x: &ShapeTensor) -> usize {
    let row = ShapeTensor { rows: 1, cols: x.cols };
    same(op, "weight", *norm.weight, row);
    norm.bias.inspect(|bias| same(op, "bias", **bias, row));
    assert!(norm.bias.is_none() || norm.spec.kind == NormKind::Layer, "{op}: an RMS norm has no bias");
    row.len() + norm.bias.map_or(0, ShapeTensor::len)
}

pub(super) fn plus_bias(bias: Option<&ShapeTensor>) -> &'static str {
    if bias.is_some() { " + bias" } else { "" }
}

pub(super) fn same<T: PartialEq + fmt::Debug>(op: &str, what: &str, found: T, expected: T) {
    assert!(found == expected, "{op}: {what}: {found:?}, expected {expected:?}");
}

pub(super) fn span_fits(op: &str, span: HeadSpan, x: &ShapeTensor) {
    assert!(span.first_col + span.heads * span.head_dim <= x.cols, "{op}: {span} do not fit in {x}");
}

/// How many elements heads with a norm have.
pub(super) fn heads_fit(op: &str, span: HeadSpan, weight: &ShapeTensor, x: &ShapeTensor) -> usize {
    span_fits(op, span, x);
    same(op, "weight", *weight, ShapeTensor { rows: 1, cols: span.head_dim });
    x.rows * span.heads * span.head_dim
}

/// How many pairs of a head a table rotates.
pub(super) fn rotated_pairs(op: &str, span: HeadSpan, x: &ShapeTensor, table: &ShapeTensor) -> usize {
    same(op, "rows of x and of the table", x.rows, table.rows);
    let pairs = table.cols / 2;
    assert!(2 * pairs == table.cols && table.cols <= span.head_dim, "{op}: {table} does not rotate {span}");
    pairs
}

pub(super) fn rows_exist(op: &str, rows: &[u32], of: usize) {
    let beyond = rows.iter().find(|row| **row as usize >= of);
    assert!(beyond.is_none(), "{op}: row {beyond:?} of {of}");
}

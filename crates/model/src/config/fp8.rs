//! `quantization_config` of checkpoints whose linear layers are stored in e4m3 with scales.

use checkpoint::ScaledBy;
use fancy_regex::Regex;
use serde_json::Value;

use crate::ModelError;

/// What is read, for messages.
const READ: &str = "read are FP8 checkpoints (quant_method fp8 or fbgemm_fp8, or compressed-tensors of format float-quantized) and \
                    those in float32, float16 or bfloat16";

/// How a checkpoint's linear layers are stored in e4m3.
#[derive(Clone, Debug)]
pub struct Fp8Config {
    /// Which elements of a weight share a scale.
    pub scaled_by: ScaledBy,
    /// Layers that are stored as floats.
    except: Vec<Pattern>,
    /// Whether that list has to name a head and routers, too.
    lists_all: bool,
}

/// Names of layers.
#[derive(Clone, Debug)]
enum Pattern {
    /// One, or what its name begins or ends with.
    Name(String),
    /// Those that an expression matches from their beginning.
    Expression(Regex),
}

impl Fp8Config {
    /// Reads a `quantization_config`.
    pub(super) fn parse(json: &Value) -> Result<Self, ModelError> {
        let method = json.get("quant_method").and_then(Value::as_str);
        let method = method.ok_or_else(|| error(format!("quant_method is missing; {READ}")))?;
        match method {
            "fp8" => {
                elements_are_e4m3(json)?;
                let scaled_by = match json.get("weight_block_size").filter(|size| !size.is_null()) {
                    None => ScaledBy::Tensor,
                    Some(size) => block("weight_block_size", size)?,
                };
                let except = [patterns(json, "modules_to_not_convert")?, patterns(json, "ignored_layers")?];
                Ok(Fp8Config { scaled_by, except: except.concat(), lists_all: false })
            }
            "fbgemm_fp8" => {
                let except = patterns(json, "modules_to_not_convert")?;
                Ok(Fp8Config { scaled_by: ScaledBy::Output, except, lists_all: false })
            }
            "compressed-tensors" => compressed(json),
            other => Err(error(format!("quant_method \"{other}\" is not read; {READ}"))),
        }
    }

    /// Whether the weight of a linear layer is stored in e4m3: of one that every such checkpoint converts, or of a head or a
    /// router. Where files are read, they say so themselves.
    pub(crate) fn converts(&self, name: &str, always: bool) -> bool {
        (always || self.lists_all) && !self.except.iter().any(|pattern| pattern.matches(name))
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, ModelError> {
        match text.strip_prefix("re:") {
            None => Ok(Pattern::Name(text.into())),
            Some(expression) => match Regex::new(&format!("^(?:{expression})")) {
                Ok(expression) => Ok(Pattern::Expression(expression)),
                Err(_) => Err(error(format!("\"{text}\" is no regular expression that is understood"))),
            },
        }
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Pattern::Name(one) => name.starts_with(one) || name.ends_with(one),
            // An expression that takes too long matches nothing.
            Pattern::Expression(expression) => expression.is_match(name).unwrap_or(false),
        }
    }
}

/// `quant_method` compressed-tensors: groups of layers, each with a scheme.
fn compressed(json: &Value) -> Result<Fp8Config, ModelError> {
    let is_fp8 = |format: &Value| format.is_null() || format == "float-quantized";
    let named = |json: &Value| json.get("format").cloned().unwrap_or(Value::Null);
    let groups = json.get("config_groups").and_then(Value::as_object).filter(|groups| !groups.is_empty());
    let groups = groups.ok_or_else(|| error("compressed-tensors without config_groups".into()))?;
    let formats = groups.values().map(&named).chain([named(json)]);
    if let Some(other) = formats.into_iter().find(|format| !is_fp8(format)) {
        return Err(error(format!("compressed-tensors of format {other} are not read; {READ}")));
    }
    let sparsity = json.get("sparsity_config").and_then(|sparsity| sparsity.get("format"));
    if let Some(format) = sparsity.filter(|format| !format.is_null() && *format != "dense") {
        return Err(error(format!("sparsity_config of format {format} is not read; dense would work")));
    }
    let mut all = groups.values().map(|group| scheme(group.get("weights").unwrap_or(&Value::Null)));
    let first = all.next().expect("checked above")?;
    for other in all {
        if other? != first {
            return Err(error("config_groups scale weights in several ways; one would work".into()));
        }
    }
    Ok(Fp8Config { scaled_by: first, except: patterns(json, "ignore")?, lists_all: true })
}

/// How the weights of a group are scaled.
fn scheme(weights: &Value) -> Result<ScaledBy, ModelError> {
    let is = |key: &str, value: Value| weights.get(key) == Some(&value);
    if !is("num_bits", 8.into()) || !is("type", "float".into()) {
        let (bits, kind) = (&weights["num_bits"], &weights["type"]);
        return Err(error(format!(
            "compressed-tensors with weights of {bits} bits of type {kind} are not read; {READ}"
        )));
    }
    if let Some(other) = weights.get("symmetric").filter(|symmetric| **symmetric != Value::Bool(true)) {
        return Err(error(format!(
            "compressed-tensors with weights whose \"symmetric\" is {other} are not read: zero points are not, true would work"
        )));
    }
    match weights.get("strategy").and_then(Value::as_str) {
        Some("tensor") => Ok(ScaledBy::Tensor),
        Some("channel") => Ok(ScaledBy::Output),
        Some("block") => block("block_structure", &weights["block_structure"]),
        _ => {
            let strategy = &weights["strategy"];
            Err(error(format!("strategy {strategy} is not read; tensor, channel and block are")))
        }
    }
}

fn elements_are_e4m3(json: &Value) -> Result<(), ModelError> {
    match json.get("fmt").filter(|fmt| !fmt.is_null()) {
        Some(fmt) if !fmt.as_str().is_some_and(|fmt| fmt.contains("e4m3")) => {
            Err(error(format!("fmt {fmt} is not read; e4m3 is")))
        }
        _ => Ok(()),
    }
}

/// `[outputs, inputs]`, also as `"128x128"`.
fn block(key: &str, value: &Value) -> Result<ScaledBy, ModelError> {
    let numbers: Option<Vec<u64>> = match value {
        Value::String(text) => text.split('x').map(|n| n.parse().ok()).collect(),
        _ => value.as_array().and_then(|sizes| sizes.iter().map(Value::as_u64).collect()),
    };
    match numbers.as_deref() {
        Some(&[outputs @ 1..=MOST, inputs @ 1..=MOST]) if inputs.is_multiple_of(tensor::GROUP as u64) => {
            Ok(ScaledBy::Block([outputs as usize, inputs as usize]))
        }
        _ => Err(error(format!(
            "{key} is {value}, which must be [outputs, inputs], inputs a multiple of {}",
            tensor::GROUP
        ))),
    }
}

/// Larger than any block.
const MOST: u64 = 1 << 30;

fn patterns(json: &Value, key: &str) -> Result<Vec<Pattern>, ModelError> {
    let Some(value) = json.get(key).filter(|value| !value.is_null()) else { return Ok(Vec::new()) };
    let names =
        value.as_array().and_then(|names| names.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
    let names = names.ok_or_else(|| error(format!("{key} must be a list of names")))?;
    names.into_iter().map(Pattern::parse).collect()
}

fn error(reason: String) -> ModelError {
    ModelError::Config(format!("quantization_config: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn compressed_with(weights: Value) -> Value {
        json!({ "quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head", "re:.*mlp[.]gate$"],
            "config_groups": { "group_0": { "targets": ["Linear"], "weights": weights } } })
    }

    fn weights(strategy: &str) -> Value {
        json!({ "num_bits": 8, "type": "float", "symmetric": true, "dynamic": false, "strategy": strategy })
    }

    #[test]
    fn each_way_to_write_it_is_read() {
        let of = |json: Value| Fp8Config::parse(&json).unwrap().scaled_by;
        let fp8 = json!({ "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 64] });
        assert_eq!(of(fp8), ScaledBy::Block([128, 64]));
        assert_eq!(of(json!({ "quant_method": "fp8", "activation_scheme": "static" })), ScaledBy::Tensor);
        assert_eq!(
            of(json!({ "quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0 })),
            ScaledBy::Output
        );
        assert_eq!(of(compressed_with(weights("tensor"))), ScaledBy::Tensor);
        assert_eq!(of(compressed_with(weights("channel"))), ScaledBy::Output);
        for block in [json!([128, 128]), json!("128x128")] {
            let mut weights = weights("block");
            weights["block_structure"] = block;
            assert_eq!(of(compressed_with(weights)), ScaledBy::Block([128, 128]));
        }
    }

    #[test]
    fn layers_that_are_left_out_are_named_or_matched() {
        let listed = Fp8Config::parse(&compressed_with(weights("channel"))).unwrap();
        assert!(listed.converts("model.layers.3.mlp.gate_proj", true));
        assert!(!listed.converts("model.layers.3.mlp.gate", false));
        assert!(!listed.converts("lm_head", false));
        let json =
            json!({ "quant_method": "fp8", "modules_to_not_convert": ["model.layers.0.", "mlp.up_proj"] });
        let fp8 = Fp8Config::parse(&json).unwrap();
        assert!(!fp8.converts("model.layers.0.self_attn.q_proj", true));
        assert!(!fp8.converts("model.layers.1.mlp.up_proj", true));
        assert!(fp8.converts("model.layers.1.mlp.down_proj", true));
        assert!(!fp8.converts("lm_head", false));
    }

    #[test]
    fn what_is_not_read_is_said_in_one_line() {
        let mut int4 = weights("group");
        int4["num_bits"] = 4.into();
        int4["type"] = "int".into();
        let mut packed = compressed_with(weights("channel"));
        packed["format"] = "pack-quantized".into();
        let mut asymmetric = weights("channel");
        asymmetric["symmetric"] = false.into();
        let mut unsaid = weights("channel");
        unsaid["symmetric"] = Value::Null;
        let mut several = compressed_with(weights("channel"));
        several["config_groups"]["group_1"] = json!({ "weights": weights("tensor") });
        let mut sparse = compressed_with(weights("channel"));
        sparse["sparsity_config"] = json!({ "format": "sparse-24-bitmask" });
        for (json, part) in [
            (json!({ "quant_method": "gptq", "bits": 4 }), "gptq"),
            (json!({ "quant_method": "mxfp4" }), "mxfp4"),
            (json!({ "load_in_8bit": true }), "quant_method is missing"),
            (json!([]), "quant_method is missing"),
            (json!({ "quant_method": "fp8", "fmt": "e5m2" }), "e5m2"),
            (json!({ "quant_method": "fp8", "weight_block_size": [128, 100] }), "multiple of 32"),
            (json!({ "quant_method": "fp8", "weight_block_size": [0, 128] }), "weight_block_size"),
            (json!({ "quant_method": "fp8", "weight_block_size": 128 }), "weight_block_size"),
            (json!({ "quant_method": "fp8", "modules_to_not_convert": "lm_head" }), "list of names"),
            (json!({ "quant_method": "fp8", "modules_to_not_convert": ["re:(" ] }), "re:("),
            (json!({ "quant_method": "compressed-tensors" }), "config_groups"),
            (compressed_with(int4), "4 bits"),
            (compressed_with(weights("group")), "group"),
            (compressed_with(weights("block")), "block_structure"),
            (compressed_with(asymmetric), "\"symmetric\" is false"),
            (compressed_with(unsaid), "\"symmetric\" is null"),
            (packed, "pack-quantized"),
            (several, "several ways"),
            (sparse, "sparse-24-bitmask"),
        ] {
            let line = Fp8Config::parse(&json).unwrap_err().to_string();
            assert!(
                line.starts_with("config.json: quantization_config: ") && line.contains(part),
                "{json}: {line}"
            );
            assert!(!line.contains('\n'), "{line}");
        }
    }
}

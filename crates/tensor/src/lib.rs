//! What every crate shares: types of elements, the canonical reduction tree, the functions of one
//! element, and the trait that devices implement.
//!
//! The arithmetic is fixed by NUMERICS.md; this crate holds its definitions, the other crates its
//! fast implementations.

mod attention;
mod clock;
pub mod conformance;
pub mod cost;
mod device;
mod dtype;
mod format;
pub mod fp8;
pub mod lanes;
pub mod math;
mod part;
mod part_costs;
mod reference;
mod scales;
mod shapes;
mod source;
mod spec;
mod step;
mod survey;
mod timed;
mod timeline;
mod trace;
mod tree;

pub use attention::{AttentionSpec, KvShare, KvSpec, SEGMENT, SeenSegment, seen_segments};
pub use clock::Clock;
pub use cost::{Cost, CostCounter, CostReport, OpCost};
pub use device::{Device, DeviceError, DeviceMemory, HostDevice};
pub use dtype::{DType, KvDType};
pub use format::{ActivationGroup, Fp8Group, GROUP, Groups, Int4Group, Int8Group, WeightFormat, WeightSpec};
pub use part::{Category, Exchanged, Part, PartTime, PartTimes};
pub use part_costs::{PartCost, PartCosts, PartLog};
pub use reference::{
    Reference, ReferenceAssignment, ReferenceKv, ReferenceRouting, ReferenceTensor, ReferenceWeight,
};
pub use scales::{ScaledMatrix, Scales};
pub use shapes::{Recorder, ShapeAssignment, ShapeRouting, ShapeTensor, ShapeWeight, Shapes};
pub use source::{
    Concat, MatrixSource, PackedBytes, PackedPart, PackedWeight, Slice, Stored, StoredElements,
};
pub use spec::{Activation, HeadSpan, Heads, LogitEdit, NormKind, NormSpec, RopeSpec, RouterSpec, RowNorm};
pub use step::{KV_BLOCK, SequenceSpan, StepMeta};
pub use survey::Survey;
pub use timed::Timed;
pub use timeline::{Event, MOST_EVENTS, ThreadLog, Timeline, What};
pub use trace::{Trace, TraceLog};
pub use tree::{NodeId, Program, ReductionTree};

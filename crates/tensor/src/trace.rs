/// x
pub struct Trace;

//! x
/// x
pub struct Cost; 
/// x
pub struct CostReport;

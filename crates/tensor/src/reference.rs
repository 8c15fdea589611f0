/// x
pub struct Reference; 
/// x
pub struct ReferenceTensor;

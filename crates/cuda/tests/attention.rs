mod emulated;
use cuda::CudaDevice;
use emulated::Emulated;
use tensor::{
    DType, KvDType,
    conformance::{self, Agreement},
};
fn dev(turn: u32) -> CudaDevice {
    CudaDevice::new(Box::new(Emulated::new(turn).unwrap()))
}
fn agree(dtype: KvDType) -> Agreement {
    match dtype {
        KvDType::Float(DType::F32) => Agreement::Bits,
        KvDType::Float(DType::BF16) => Agreement::Near { multiplies: DType::BF16, tolerance: 1.0 / 128.0 },
        _ => Agreement::Near { multiplies: DType::F16, tolerance: 1.0 / 1024.0 },
    }
}
#[test]
fn try_copies() {
    conformance::copies_agreeing(&dev(0), &agree);
}
#[test]
fn try_attention() {
    conformance::attention_agreeing(&dev(0), &agree);
}
#[test]
fn try_context() {
    conformance::context_agreeing(&dev(0), &agree);
}

//! burn-fusion: records ops and runs them together later. An op without a line here is the reference, recorded op by op, so that
//! its element-wise parts are still fused into one launch.

use burn_fusion::{Fusion, FusionBackend};

use crate::KernelBackend;

impl<B: FusionBackend + KernelBackend> KernelBackend for Fusion<B> {}

//! A small matrix, whole.

use super::super::workload::RowOp;
use super::*;

fn records(workloads: Vec<Workload>, absent: &[Absent]) -> Vec<Record> {
    let settings = Settings {
        backends: vec![BackendName::Flex],
        workloads,
        rounds: 3,
        sample_seconds: 0.002,
        models: Models::default(),
    };
    let mut records = Vec::new();
    let keep = &mut |record| {
        records.push(record);
        Ok::<(), ()>(())
    };
    run(&Base::now(), &settings, &mut [], absent, keep).unwrap();
    records
}

#[test]
fn every_op_gives_the_right_answer_and_a_record() {
    let mut workloads = Vec::new();
    for op in RowOp::ALL {
        for reference in [false, true] {
            workloads.push(Kind::Rows { op, shape: [64, 1024], reference });
        }
    }
    workloads.extend([
        Kind::Matmul { sizes: [64, 256, 128] },
        Kind::LoraForward { sizes: [4, 512, 8] },
        Kind::Attention { tokens: 64 },
        Kind::DecodeAttention { keys: 100 },
        Kind::Matmul { sizes: [1, 896, 4864] },
        Kind::Rope { tokens: 64 },
        Kind::Mlp { tokens: 8 },
        Kind::Layer { tokens: 8 },
        Kind::Sampling,
    ]);
    let count = workloads.len();
    let workloads = workloads.into_iter().map(|kind| Workload { kind, dtype: DType::F32 }).collect();
    let records = records(workloads, &[]);
    assert_eq!(records.len(), count);
    for record in records {
        // Not fast enough to be believed is for a quiet machine to say; a wrong answer is wrong anywhere.
        let reason = record.reason.clone().unwrap_or_default();
        assert!(!reason.contains("wrong answer") && !reason.contains("failed"), "{}: {reason}", record.label());
        if record.status == Status::Measured {
            assert_eq!(record.samples.len(), 3);
            assert!(record.rate.is_some() && record.of_roof.is_some_and(|share| share <= 1.0), "{record:?}");
        }
    }
}

#[test]
fn who_is_absent_is_not_measured_and_says_why() {
    let absent = Absent { name: "llama.cpp".into(), reason: "it did not build".into() };
    let rope = Workload { kind: Kind::Rope { tokens: 64 }, dtype: DType::F32 };
    let records = records(vec![rope], std::slice::from_ref(&absent));
    let theirs = records.iter().find(|record| record.implementation == "llama.cpp").unwrap();
    assert_eq!((theirs.status, theirs.reason.as_deref()), (Status::NotMeasured, Some("it did not build")));
    assert!(theirs.peer && theirs.samples.is_empty());
}

#[test]
fn a_device_that_imitates_a_gpu_is_spared_whole_models() {
    let device = |kind| {
        let mut device = devices(BackendName::Flex).remove(0);
        device.kind = kind;
        device
    };
    let prefill = Workload { kind: Kind::Prefill { tokens: 512 }, dtype: DType::F32 };
    assert!(left_out(&prefill, BackendName::Flex, &device(DeviceKind::Software), u64::MAX).is_some());
    assert_eq!(left_out(&prefill, BackendName::Flex, &device(DeviceKind::Cpu), u64::MAX), None);
}

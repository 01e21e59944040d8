//! How many kernels wgpu launches for a decoded token: each costs microseconds on the host, whatever it computes, and at one row that is
//! most of the time.

mod support;

use std::collections::BTreeMap;

use firebrick::KernelBackend;
use firebrick::backend::backends::{Wgpu, WgpuUnfused};
use firebrick::backend::launches::Launches;
use firebrick::core::lora::{LoraConfig, Targets};
use firebrick::core::model::CausalLm;
use firebrick::core::sequence::{Segments, Sequences};
use support::{Golden, floats, random_adapter};

/// The kernels of one decoded token behind a prompt of nine, from its id to its logits.
fn of_a_token<B: KernelBackend>(launches: &Launches, model: &dyn CausalLm<B>) -> Vec<String> {
    let device = model.device();
    let mut cache = model.new_cache(1, 32);
    let mut step = |ids: &[u32]| {
        let tokens = Sequences::new(ids, Segments::continuing([(ids.len(), cache.len(0))]), &device);
        floats(model.head(model.hidden(&tokens, Some(&mut cache))));
    };
    step(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    // Fusion explores what to run together the first times that it sees a block of ops.
    for id in 10..14 {
        step(&[id]);
    }
    launches.of::<B>(&device, || step(&[14]))
}

/// How often each kernel was launched, by the first word of its name.
fn counts(kernels: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    kernels.iter().for_each(|kernel| *counts.entry(kernel.split(' ').next().unwrap_or_default()).or_insert(0) += 1);
    counts
}

/// Checks what each op of a decoded token launches, without an adapter and with one on every linear. `turn` is the kernel that makes queries
/// and keys of heads.
fn check<B: KernelBackend>(launches: &Launches, what: &str, name: &str, turn: &str) {
    let model = Golden::open(name).load::<B>(&B::Device::default());
    let lora = LoraConfig { rank: 4, targets: Targets::AllLinear, ..LoraConfig::default() };
    let adapted = random_adapter(&*model, &lora, 0.1).attach(&*model).unwrap();
    let layers = model.facts().layers;
    for (adapters, model, adapted) in [("without", &*model, 0), ("with", &*adapted, 7)] {
        let kernels = of_a_token(launches, model);
        let counts = counts(&kernels);
        println!("{name} on {what} {adapters} adapters: {} launches for {layers} layers", kernels.len());
        counts.iter().for_each(|(kernel, count)| println!("{count:5} {kernel}"));
        // Queries, keys and values are one launch, with their biases, and the two sides of the MLP another, where they have no adapters; with
        // one a linear is a launch with its adapter's second matrix, and the first one another.
        let (together, alone) = if adapted == 0 { (2, 2) } else { (0, 7 + adapted) };
        let expected = [
            ("RowsTimesWeights", layers * together),
            // And the head.
            ("RowsTimesWeight", layers * alone + 1),
            // The queries; the keys on their way into the cache.
            (turn, layers * 2),
            // The values.
            ("PlaceValues", layers),
            ("Attend", layers),
            // Each sum with the norm after it; the first norm.
            ("AddNorm", layers * 2),
            ("Norm", 1),
            ("Gated", layers),
        ];
        for (kernel, launches) in expected {
            assert_eq!(counts.get(kernel).copied().unwrap_or(0), launches, "{kernel} for {layers} layers");
        }
        // The cache is not copied, nor anything else; and no product of one row is a matrix product.
        for kernel in ["CopyKernel", "MatmulEntry", "SliceAssignKernel"] {
            assert_eq!(counts.get(kernel), None, "{kernel}");
        }
        // The embedding is the one launch that is not named above: Burn's, under the name that fusion gives it.
        let of_a_layer = 7 + together + alone;
        assert_eq!(kernels.len(), layers * of_a_layer + 3, "the layers; the embedding, the first norm and the head");
        println!("{name} on {what} {adapters} adapters: {of_a_layer} launches a layer");
    }
}

// One test: CubeCL's settings, the launches it notes and the device are the process's.
#[test]
fn a_decoded_token_is_few_launches() {
    let folder = tempfile::tempdir().unwrap();
    let launches = Launches::noted_in(&folder.path().join("launches")).expect("CubeCL is built in");
    // Qwen3 norms the heads of queries and keys, in the launch that turns them.
    for (name, turn) in [("qwen2-tiny", "TurnPairs"), ("qwen3-tiny", "NormAndTurn")] {
        check::<Wgpu>(&launches, "wgpu", name, turn);
        check::<WgpuUnfused>(&launches, "wgpu without fusion", name, turn);
    }
}

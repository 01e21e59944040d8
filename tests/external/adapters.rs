//! Adapters pass between us, PEFT and mlx-lm without changing what the model says.

use std::path::Path;

use firebrick::prelude::*;

use super::python::{logits as python_logits, script};
use crate::contract;
use crate::support::{DECODERS, Golden, Inner, assert_golden, logits, random_adapter};

const PROMPT: [u32; 12] = [3, 141, 59, 26, 53, 58, 97, 93, 238, 462, 64, 338];

/// The logits of PEFT or mlx-lm with the adapter in a folder.
fn logits_of(name: &str, base: &Path, adapter: &Path) -> Vec<f32> {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("logits.safetensors");
    let tokens = format!("{PROMPT:?}");
    let [base, adapter, out] = [base, adapter, &file].map(|path| path.to_str().unwrap());
    match name {
        "peft" => script("peft_logits.py", [base, adapter, &tokens, out]),
        "mlx" => script("mlx_logits.py", [base, &tokens, out, "--adapter", adapter]),
        _ => panic!("{name}"),
    }
    python_logits(&file)
}

/// Our logits with the adapter attached and merged equal these, and the base's do not.
fn assert_equals<B: KernelBackend>(model: &dyn CausalLm<B>, adapter: &Adapter<B>, expected: &[f32], what: &str) {
    let ids = [PROMPT.to_vec()];
    assert_golden(&logits(&*adapter.attach(model).unwrap(), &ids), expected, &format!("{what}, attached"));
    assert_golden(&logits(&*adapter.merge(model).unwrap(), &ids), expected, &format!("{what}, merged"));
    let moved = logits(model, &ids).iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(moved > 0.01, "{what}: the adapter moves the logits by {moved} only, a mistake would not show");
}

/// Configs of every kind that a format can say: names, all linears with rank-stabilised scale, and one layer alone.
fn configs() -> [(&'static str, LoraConfig); 3] {
    let default = LoraConfig::default;
    [
        ("q_proj,v_proj", default()),
        ("all-linear", LoraConfig { rank: 4, targets: Targets::AllLinear, rslora: true, ..default() }),
        (
            "a layer",
            LoraConfig { rank: 3, targets: Targets::parse(r".*\.layers\.0\.mlp\.(up|down)_proj"), ..default() },
        ),
    ]
}

fn assert_ours_equals<B: KernelBackend>(format: Format, name: &str, device: &B::Device) {
    for decoder in DECODERS {
        let golden = Golden::open(decoder);
        let model = golden.load::<B>(device);
        for (targets, config) in configs() {
            let adapter = random_adapter(&*model, &config, 0.2);
            let folder = tempfile::tempdir().unwrap();
            adapter.save(folder.path(), format).unwrap();
            let expected = logits_of(name, &golden.folder, folder.path());
            assert_equals(&*model, &adapter, &expected, &format!("{decoder}, {targets} in {name}"));
        }
    }
}

contract! {
    #[ignore = "needs Python with PEFT"]
    fn an_adapter_of_ours_equals_peft<B>(device) {
        assert_ours_equals::<Inner<B>>(Format::Peft, "peft", &device);
    }
}

contract! {
    #[ignore = "needs Python with mlx-lm"]
    fn an_adapter_of_ours_equals_mlx<B>(device) {
        assert_ours_equals::<Inner<B>>(Format::Mlx, "mlx", &device);
    }
}

contract! {
    #[ignore = "needs Python with PEFT"]
    fn adapters_of_peft_equal_ours<B>(device) {
        let cases: [(&str, &[&str]); 6] = [
            ("qwen2-tiny", &["--rank-pattern", r#"{"q_proj": 4, "layers.1.self_attn.v_proj": 2}"#, "--rslora"]),
            ("qwen2-tiny-untied", &["--alpha-pattern", r#"{"^model.layers.0.*v_proj": 64, "q_proj": 3}"#]),
            ("qwen2-tiny", &["--layers", "0,2"]),
            ("qwen3-tiny", &["--target-regex", r".*\.layers\.[02]\.(self_attn\.(q|o)_proj|mlp\.down_proj)"]),
            ("qwen2-tiny-untied", &["--targets", "all-linear", "--rank", "4"]),
            ("qwen3-tiny", &["--targets", "all-linear", "--rslora", "--rank", "5", "--alpha", "7"]),
        ];
        for (seed, (decoder, arguments)) in cases.into_iter().enumerate() {
            let golden = Golden::open(decoder);
            let folder = tempfile::tempdir().unwrap();
            let [base, out] = [golden.folder.as_path(), folder.path()].map(|path| path.to_str().unwrap());
            let seed = seed.to_string();
            script("peft_random_adapter.py", [&[base, out, "--seed", &seed], arguments].concat());
            let expected = logits_of("peft", &golden.folder, folder.path());
            let adapter = Adapter::load(folder.path(), &device).unwrap();
            let what = format!("{decoder} {arguments:?}");
            assert_equals(&*golden.load::<Inner<B>>(&device), &adapter, &expected, &what);
            // And back: what we save of it, PEFT reads as the same.
            let saved = tempfile::tempdir().unwrap();
            adapter.save(saved.path(), Format::Peft).unwrap();
            for name in ["adapter_config.json", "adapter_model.safetensors"] {
                let [ours, theirs] = [saved.path(), folder.path()].map(|at| std::fs::read(at.join(name)).unwrap());
                assert!(ours == theirs, "{what}: {name} changed");
            }
        }
    }
}

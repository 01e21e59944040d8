//! What a model is to the rest of the framework: a decoder, an encoder, something that carries adapters. Object-safe, so that model code is
//! compiled once for each backend and not once for each use.

use burn::tensor::{DType, Tensor};
use firebrick_backend::ops::cross_entropy::{Targets, cross_entropy_of_linear};
use firebrick_backend::{KernelBackend, TrainBackend};

use crate::cache::{KvCache, LayerCache};
use crate::nn::{Linear, Stream};
use crate::sequence::{Segments, Sequences};

/// The sizes the framework needs to know of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoderFacts {
    /// Decoder layers.
    pub layers: usize,
    /// Width of a hidden state.
    pub hidden: usize,
    /// Rows of the embedding table.
    pub vocabulary: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Dimension of a head.
    pub head_dim: usize,
    /// Positions the model was made for: `max_position_embeddings`.
    pub context: usize,
}

/// Values that a layer holds for each token of a pass beside its weights, f32 each: what its ops save for their gradients, and the most
/// that exist at a time besides. Each is counted by reading the ops; the estimate of a run's memory is made of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Kept from the way forward for the way back.
    pub kept: usize,
    /// The most besides on the way forward.
    pub forward: usize,
    /// The most besides on the way back.
    pub backward: usize,
    /// The most where nothing is kept.
    pub inference: usize,
}

/// What every layer of a forward pass shares: where its rows stand, and their rotary tables.
#[derive(Clone, Debug)]
pub struct Positions<B: KernelBackend> {
    /// The segments of the rows.
    pub segments: Segments,
    /// cos of the rotary angles, `[rows, head_dim / 2]`.
    pub cos: Tensor<B, 2>,
    /// sin of the rotary angles, `[rows, head_dim / 2]`.
    pub sin: Tensor<B, 2>,
}

/// A decoder: tokens in, next-token logits out.
pub trait CausalLm<B: KernelBackend>: Adapt<B> + Send + Sync {
    /// The model's sizes.
    fn facts(&self) -> DecoderFacts;
    /// The device its weights are on.
    fn device(&self) -> B::Device;
    /// The dtype it computes in: f32, or f64 where the weights are.
    fn compute_dtype(&self) -> DType;
    /// Embeddings of the tokens, `[tokens, hidden]`.
    fn embed(&self, tokens: &Sequences<B>) -> Tensor<B, 2>;
    /// What the layers need to know of the rows' positions.
    fn positions(&self, segments: &Segments) -> Positions<B>;
    /// One decoder layer, `[tokens, hidden]` → `[tokens, hidden]`. Its last addition is left to the norm of the layer that comes next. The last
    /// layer gives the [wanted](Segments::wanted) rows alone.
    fn layer(
        &self,
        index: usize,
        stream: Stream<B>,
        positions: &Positions<B>,
        cache: Option<&mut LayerCache<B>>,
    ) -> Stream<B>;
    /// What a layer holds for each token, with the adapter that is attached.
    fn footprint(&self, index: usize) -> Footprint;
    /// The final norm, `[rows, hidden]` → `[rows, hidden]`.
    fn norm(&self, stream: Stream<B>) -> Tensor<B, 2>;
    /// The matrices that are no linear's: the embedding table, and the head where it is another.
    fn token_tables(&self) -> Vec<Tensor<B, 2>>;
    /// The head's weight, `[vocabulary, hidden]`: the embedding table where they are tied.
    fn head_weight(&self) -> Tensor<B, 2>;
    /// Logits of normed hidden states, `[rows, hidden]` → `[rows, vocabulary]`. Ask for the rows that are needed.
    fn head(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        firebrick_backend::ops::linear::linear(hidden, self.head_weight(), None)
    }
    /// Another handle to the same weights.
    fn boxed(&self) -> Box<dyn CausalLm<B>>;
    /// The same weights on the backend underneath autodiff, where generation and validation belong.
    fn valid(&self) -> Box<dyn CausalLm<B::InnerBackend>>
    where
        B: TrainBackend;

    /// The one forward: embeddings through every layer and the final norm, `[tokens, hidden]`, or `[wanted, hidden]` where the segments say
    /// which rows are [wanted](Segments::wanting). With a cache the segments continue what it holds; without one they are whole sequences.
    fn hidden(&self, tokens: &Sequences<B>, mut cache: Option<&mut KvCache<B>>) -> Tensor<B, 2> {
        let positions = self.positions(&tokens.segments);
        let mut stream = Stream::of(self.embed(tokens));
        for index in 0..self.facts().layers {
            stream = self.layer(index, stream, &positions, cache.as_deref_mut().map(|cache| cache.layer(index)));
        }
        if let Some(cache) = cache {
            cache.advance(&tokens.segments);
        }
        self.norm(stream)
    }
    /// Weighted sum of the cross entropies of the rows' next tokens, `[1]`; logits exist a chunk at a time only.
    fn loss(&self, hidden: Tensor<B, 2>, targets: &Targets) -> Tensor<B, 1> {
        cross_entropy_of_linear(hidden, self.head_weight(), targets)
    }
    /// An empty cache with room for `capacity` tokens in each of `slots` sequences.
    fn new_cache(&self, slots: usize, capacity: usize) -> KvCache<B> {
        self.new_cache_in(slots, capacity, self.compute_dtype())
    }
    /// The same that stores keys and values in `dtype`, one that [`KernelBackend::reads_cache`].
    fn new_cache_in(&self, slots: usize, capacity: usize, dtype: DType) -> KvCache<B> {
        let DecoderFacts { layers, kv_heads, head_dim, .. } = self.facts();
        KvCache::new(layers, slots, capacity, kv_heads, head_dim, dtype, &self.device())
    }
}

/// The sizes the framework needs to know of an encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderFacts {
    /// Encoder layers.
    pub layers: usize,
    /// Width of a hidden state.
    pub hidden: usize,
    /// Rows of the embedding table.
    pub vocabulary: usize,
    /// Tokens of a sequence at most.
    pub context: usize,
}

/// An encoder: tokens in, hidden states out.
pub trait Encoder<B: KernelBackend>: Adapt<B> + Send + Sync {
    /// The model's sizes.
    fn facts(&self) -> EncoderFacts;
    /// The device its weights are on.
    fn device(&self) -> B::Device;
    /// What enters the first layer, `[tokens, hidden]`.
    ///
    /// # Panics
    /// If a segment is empty or longer than the context.
    fn embed(&self, tokens: &Sequences<B>) -> Tensor<B, 2>;
    /// One encoder layer, `[tokens, hidden]` → `[tokens, hidden]`.
    fn layer(&self, index: usize, x: Tensor<B, 2>, segments: &Segments) -> Tensor<B, 2>;
    /// What a layer holds for each token, with the adapter that is attached.
    fn footprint(&self, index: usize) -> Footprint;
    /// Hidden states of the tokens, `[tokens, hidden]`. Each segment is a whole sequence, and sees only itself.
    ///
    /// # Panics
    /// If a segment is empty, longer than the context, or does not start at position 0.
    fn encode(&self, tokens: &Sequences<B>) -> Tensor<B, 2> {
        (0..self.facts().layers).fold(self.embed(tokens), |x, index| self.layer(index, x, &tokens.segments))
    }
    /// The matrices that are no linear's: a row for each token, and for each position.
    fn token_tables(&self) -> Vec<Tensor<B, 2>>;
    /// Another handle to the same weights.
    fn boxed(&self) -> Box<dyn Encoder<B>>;
    /// The same weights on the backend underneath autodiff, where embedding and validation belong.
    fn valid(&self) -> Box<dyn Encoder<B::InnerBackend>>
    where
        B: TrainBackend;
}

/// Something whose linears can carry adapters.
pub trait Adapt<B: KernelBackend> {
    /// Visits each linear with its checkpoint path, `model.layers.0.self_attn.q_proj`, in the checkpoint's order.
    fn each_linear(&mut self, visit: &mut dyn FnMut(&str, &mut Linear<B>));
}

/// A kind of model behind `dyn`, of which another handle can be had for an adapter to be attached to, and whose forward can be had layer by
/// layer. There are two.
pub trait Handle<B: KernelBackend>: Adapt<B> {
    /// PEFT's name for what the model is for.
    const TASK: &'static str;
    /// Whether every linear of the architecture but a head is visited, so that `all-linear` is the same here and in PEFT.
    const READS_ALL_LINEARS: bool;
    /// Linears of the architecture that nothing here reads: what an adapter learnt for them changes nothing.
    const UNREAD_LINEARS: &'static [&'static str];
    /// What the layers need to know of where rows stand.
    type Places;
    /// Another handle to the same weights.
    fn handle(&self) -> Box<Self>;
    /// The device its weights are on.
    fn place(&self) -> B::Device;
    /// How many layers there are.
    fn layers(&self) -> usize;
    /// Width of a hidden state.
    fn width(&self) -> usize;
    /// Tokens that its head tells apart, of a model that has one.
    fn vocabulary(&self) -> Option<usize>;
    /// The matrices that are no linear's: a row for each token or position.
    fn tables(&self) -> Vec<Tensor<B, 2>>;
    /// What a layer holds for each token, with the adapter that is attached.
    fn layer_footprint(&self, index: usize) -> Footprint;
    /// Where the rows of these segments stand.
    fn places(&self, segments: &Segments) -> Self::Places;
    /// What enters the first layer, `[tokens, hidden]`.
    fn enter(&self, tokens: &Sequences<B>) -> Tensor<B, 2>;
    /// Through one layer, without a cache, `[tokens, hidden]`; a decoder's last gives the wanted rows alone.
    fn pass(&self, index: usize, stream: Stream<B>, places: &Self::Places) -> Stream<B>;
    /// Hidden states from what leaves the last layer, of the same rows.
    fn leave(&self, stream: Stream<B>) -> Tensor<B, 2>;
    /// Hidden states of whole sequences: all of that in one.
    fn hidden_states(&self, tokens: &Sequences<B>) -> Tensor<B, 2>;
}

impl<'m, B: KernelBackend> Handle<B> for dyn CausalLm<B> + 'm {
    const TASK: &'static str = "CAUSAL_LM";
    const READS_ALL_LINEARS: bool = true;
    const UNREAD_LINEARS: &'static [&'static str] = &[];
    type Places = Positions<B>;

    fn handle(&self) -> Box<Self> {
        self.boxed()
    }

    fn place(&self) -> B::Device {
        self.device()
    }

    fn layers(&self) -> usize {
        self.facts().layers
    }

    fn width(&self) -> usize {
        self.facts().hidden
    }

    fn vocabulary(&self) -> Option<usize> {
        Some(self.facts().vocabulary)
    }

    fn tables(&self) -> Vec<Tensor<B, 2>> {
        self.token_tables()
    }

    fn layer_footprint(&self, index: usize) -> Footprint {
        self.footprint(index)
    }

    fn places(&self, segments: &Segments) -> Positions<B> {
        self.positions(segments)
    }

    fn enter(&self, tokens: &Sequences<B>) -> Tensor<B, 2> {
        self.embed(tokens)
    }

    fn pass(&self, index: usize, stream: Stream<B>, places: &Positions<B>) -> Stream<B> {
        self.layer(index, stream, places, None)
    }

    fn leave(&self, stream: Stream<B>) -> Tensor<B, 2> {
        self.norm(stream)
    }

    fn hidden_states(&self, tokens: &Sequences<B>) -> Tensor<B, 2> {
        self.hidden(tokens, None)
    }
}

impl<'m, B: KernelBackend> Handle<B> for dyn Encoder<B> + 'm {
    const TASK: &'static str = "FEATURE_EXTRACTION";
    const READS_ALL_LINEARS: bool = false;
    // PEFT adapts it with `all-linear`, and with the name `dense`, which BERT's other linears have as well.
    const UNREAD_LINEARS: &'static [&'static str] = &["pooler.dense"];
    type Places = Segments;

    fn handle(&self) -> Box<Self> {
        self.boxed()
    }

    fn place(&self) -> B::Device {
        self.device()
    }

    fn layers(&self) -> usize {
        self.facts().layers
    }

    fn width(&self) -> usize {
        self.facts().hidden
    }

    fn vocabulary(&self) -> Option<usize> {
        None
    }

    fn tables(&self) -> Vec<Tensor<B, 2>> {
        self.token_tables()
    }

    fn layer_footprint(&self, index: usize) -> Footprint {
        self.footprint(index)
    }

    fn places(&self, segments: &Segments) -> Segments {
        segments.clone()
    }

    fn enter(&self, tokens: &Sequences<B>) -> Tensor<B, 2> {
        self.embed(tokens)
    }

    fn pass(&self, index: usize, stream: Stream<B>, segments: &Segments) -> Stream<B> {
        Stream::of(self.layer(index, stream.sum(), segments))
    }

    fn leave(&self, stream: Stream<B>) -> Tensor<B, 2> {
        stream.sum()
    }

    fn hidden_states(&self, tokens: &Sequences<B>) -> Tensor<B, 2> {
        self.encode(tokens)
    }
}

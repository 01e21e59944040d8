//! Metal's source as C++ that clang takes: threadgroup arrays where the machine finds them, and an entry for each kernel that binds its
//! arguments by their attributes.

/// The built-in arguments that have three coordinates.
const POSITIONS: [&str; 6] = [
    "thread_position_in_threadgroup",
    "threadgroup_position_in_grid",
    "thread_position_in_grid",
    "threads_per_threadgroup",
    "threadgroups_per_grid",
    "threads_per_grid",
];

/// What is compiled, and the kernels in it.
pub(super) struct Translation {
    /// To be run.
    pub(super) program: String,
    /// To be checked for pointers that leave their address space.
    pub(super) spaces: String,
    pub(super) functions: Vec<String>,
}

/// Translates a whole file.
///
/// # Panics
/// If a kernel has an argument without an attribute that we know.
pub(super) fn translate(source: &str) -> Translation {
    let (mut program, mut spaces) = (String::new(), String::from("#define METAL_ADDRESS_SPACES\n"));
    for line in source.lines() {
        // As CubeCL says it; `kernel` alone is a macro.
        if line == "[[kernel]]" {
            continue;
        }
        match array(line) {
            Some((kind, name, length)) => {
                program.push_str(&format!(
                    "static __attribute__((section(\"metal_threadgroup\"))) MetalThreadgroupArray<{kind}, {length}> {name}_storage; \
                     {kind} (&{name})[{length}] = metal_shared({name}_storage);\n"
                ));
                spaces.push_str(&format!("static threadgroup {kind} {name}[{length}];\n"));
            }
            None => {
                program.push_str(&format!("{line}\n"));
                spaces.push_str(&format!("{line}\n"));
            }
        }
    }
    program.push_str(
        "extern \"C\" char __start_metal_threadgroup[] __attribute__((weak, visibility(\"hidden\")));\n\
         extern \"C\" char __stop_metal_threadgroup[] __attribute__((weak, visibility(\"hidden\")));\n\
         extern \"C\" const uintptr_t* metal_threadgroup_memory() {\n\
         static const uintptr_t range[2] = {(uintptr_t)__start_metal_threadgroup, (uintptr_t)__stop_metal_threadgroup};\n\
         return range;\n}\n",
    );
    let mut functions = Vec::new();
    for (name, arguments) in kernels(source) {
        let arguments: Vec<String> = arguments.iter().map(|argument| bind(argument)).collect();
        // Through a volatile pointer, so that nothing of the kernel is inlined into what is not watched.
        program.push_str(&format!(
            "extern \"C\" __attribute__((no_sanitize(\"coverage\"))) void metal_enter_{name}(void* const* buffers, const MetalThread* self) {{\n\
             auto* volatile call = &{name};\ncall({});\n}}\n",
            arguments.join(",\n")
        ));
        functions.push(name);
    }
    Translation { program, spaces, functions }
}

/// `threadgroup float partial[32];` as its type, name and length; pointers into such memory are none.
fn array(line: &str) -> Option<(&str, &str, &str)> {
    let declaration = line.trim().strip_prefix("threadgroup ")?.strip_suffix("];")?;
    let (declared, length) = declaration.split_once('[')?;
    let (kind, name) = declared.trim().rsplit_once(' ')?;
    (!declared.contains(['*', '&', '='])).then_some((kind, name, length))
}

/// Each kernel's name and arguments.
fn kernels(source: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some(at) = ["kernel void ", "[[kernel]]\nvoid "].iter().filter_map(|mark| rest.find(mark)).min() {
        rest = &rest[at..];
        let open = rest.find('(').expect("a kernel has arguments");
        let name = rest[..open].rsplit(char::is_whitespace).next().unwrap_or_default();
        let (mut depth, mut arguments) = (0, vec![String::new()]);
        let mut end = open;
        for (index, letter) in rest[open..].char_indices() {
            match letter {
                '(' | '[' => depth += 1,
                ')' | ']' => depth -= 1,
                _ => {}
            }
            match (letter, depth) {
                (')', 0) => {
                    end = open + index;
                    break;
                }
                (',', 1) => arguments.push(String::new()),
                ('(', 1) => {}
                _ => arguments.last_mut().expect("one at least").push(letter),
            }
        }
        found.push((name.to_owned(), arguments));
        rest = &rest[end..];
    }
    found
}

/// `device const float* x [[buffer(0)]]` as the expression that the kernel is called with.
fn bind(argument: &str) -> String {
    let (declared, attribute) = argument.split_once("[[").unwrap_or_else(|| panic!("no attribute: {argument}"));
    let attribute = attribute.trim().trim_end_matches("]]");
    let declared = declared.trim();
    let name = declared.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
    let kind = declared[..declared.len() - name.len()].trim();
    if let Some(index) = attribute.strip_prefix("buffer(") {
        let index = index.trim_end_matches(')');
        return match kind.strip_suffix('&') {
            Some(value) => format!("*({value}*)buffers[{index}]"),
            None => format!("({kind})buffers[{index}]"),
        };
    }
    match kind {
        "uint3" => format!("uint3{{self->{attribute}.x, self->{attribute}.y, self->{attribute}.z}}"),
        "uint" if POSITIONS.contains(&attribute) => format!("self->{attribute}.x"),
        "uint" => format!("self->{attribute}"),
        _ => panic!("an argument we do not bind: {argument}"),
    }
}

# Reads a disassembly of gather.cu. In each gather kernel there must be a fence of system scope whose first store behind it
# is one of 64 bits and system scope: the publish that the host waits for. -v arch=… names the architecture in messages.
/Function :/ {
    name = $3
    fenced = 0
    if (name ~ /gatherILi/) {
        kernels++
        missing[name] = 1
    } else {
        name = ""
    }
}
name != "" && /MEMBAR\.[A-Z]+\.SYS/ { fenced = 1 }
name != "" && fenced && / STG?\.E/ {
    if ($0 ~ /STG?\.E\.64\.STRONG\.SYS/) delete missing[name]
    fenced = 0
}
END {
    for (n in missing) {
        print arch ": " n " publishes without system scope"
        bad = 1
    }
    if (kernels != 3) {
        print arch ": " kernels + 0 " gather kernels; want 3"
        bad = 1
    }
    if (!bad) print arch ": the publish of " kernels " gather kernels has system scope"
    exit bad
}

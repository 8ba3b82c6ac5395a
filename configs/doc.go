// Package configs reads the configuration of gondolin-mcp.
//
// # Layers
//
// [Load] lays four layers over each other; a later one wins, key by key:
//
//	defaults < file < environment < flags
//
// The file is YAML: the one named by [Sources].File (`--config`), else by the
// environment variable GONDOLIN_CONFIG, else config.yaml in the directory
// gondolin of $XDG_CONFIG_HOME (or ~/.config) if it is there. A key such as
// limits.memory is the environment variable GONDOLIN_LIMITS_MEMORY and, where
// the key has one, a flag: --memory. All three come from one table, keys.go.
// Variables of the sandbox itself are session.env.NAME in the file,
// GONDOLIN_SESSION_ENV_NAME, or --env NAME=VALUE.
//
// Lists of blocks (mounts, network.rules, secrets) are in the file, and flags add to them
// (--mount, --allow-host, --secret); they have no environment variables. Their keys are
// tables of their own, lists.go.
//
// # Values
//
// Sizes are written as people say them: 512MiB, 2GiB, 1.5GiB, and a plain whole
// number means MiB. Durations are 30s, 15m, 2h; where a limit may be absent,
// `never` says so. Paths are absolute or begin with ~/; only on the command
// line a relative one is taken from the working directory. A directory to be mounted
// (workspace, mounts[].source) may in a file also be relative to where that lies.
//
// # Strictness
//
// A configuration with a mistake is not used at all, and every mistake is
// reported at once, in an [*Error] that lists each as a [Problem]: where it is
// (file and line, environment variable or flag), which key, what is wrong and
// what was probably meant. Unknown keys, duplicate keys, values of a wrong type
// or out of range, unknown versions and unknown GONDOLIN_ variables are
// mistakes. So are YAML's anchors, aliases and merge keys, which makes a file
// harmless however it was made. Files above 1 MiB are refused. Directories to be
// mounted must exist where Sources.Here asks for it, as serving does.
//
// # Network and secrets
//
// The blocks of network and secrets are those of packages policy and secret, which judge
// them; their findings come back as Problems with the line of the very item. What is only
// suspicious is in [Config.Warnings]. A list of conditions that is there and empty is a mistake,
// since none would mean everything. No value of a secret is in a configuration, and what
// stands in the blocks of secrets is quoted in no message, in case it is one after all.
//
// # Examples
//
// The *.yaml files beside this text are examples and tested: full.yaml names
// every key with its default, minimal.yaml is a start, locked-down.yaml is for
// those who trust nothing. [Example] returns them.
//
// The package starts no goroutine, logs nothing and reads the process's
// environment only through Sources and for the place of the cache directory.
package configs

package images

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDistributionSources(t *testing.T) {
	list := parseList(strings.NewReader(`
# deb http://old.example/debian bookworm main
deb http://user:secret@mirror.example/debian bookworm main contrib # ours
deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.example/debian bookworm-updates main
deb-src http://mirror.example/debian bookworm main
deb [signed-by=/etc/apt/keyrings/docker.asc] https://vendor.example/linux/debian bookworm stable
deb [signed-by=/etc/apt/keyrings/vendor.asc] https://vendor.example/linux/debian bookworm main
deb http://mirror.example/debian bookworm-backports main
deb http://mirror.example/debian trixie main
deb broken
`))
	stanzas := parseDeb822(strings.NewReader(`# comment
Types: deb deb-src
URIs: https://mirror.example/debian-security
Suites: bookworm-security
 trixie-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----

Enabled: no
Types: deb
URIs: https://mirror.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: file:/srv/local
Suites: ./
`))
	got, err := distributionSources(append(list, stanzas...), "bookworm")
	require.NoError(t, err)
	var lines []string
	for _, s := range got {
		lines = append(lines, s.uri+" "+s.suite)
	}
	require.Equal(t, []string{"http://user:secret@mirror.example/debian bookworm", "http://mirror.example/debian bookworm-updates",
		"https://mirror.example/debian-security bookworm-security"}, lines)
	require.True(t, got[2].inlineKey())

	guest := guestSources(append(got, aptSource{uri: "file:/srv/mirror", suite: "bookworm", components: []string{"main"}}))
	require.Equal(t, "deb http://mirror.example/debian bookworm main contrib\n"+
		"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.example/debian bookworm-updates main\n"+
		"deb https://mirror.example/debian-security bookworm-security main\n", guest, "no credentials, no local paths")

	_, err = distributionSources(list, "sid")
	require.ErrorContains(t, err, `no source for the suite "sid"`)

	own := []aptSource{{uri: "https://company.example/debian", suite: "bookworm", components: []string{"main"}, signedBy: "/etc/apt/keyrings/company.gpg"}}
	got, err = distributionSources(own, "bookworm")
	require.NoError(t, err, "a mirror with its own key counts when there is no other")
	require.Equal(t, own, got)
}

func TestAptSettings(t *testing.T) {
	got := aptSettings(`Acquire "";
Acquire::http "";
Acquire::http::Proxy "http://user:pw@proxy.example:3128";
Acquire::Check-Valid-Until "false";
Acquire::GzipIndexes "true";
Acquire::httpfoo "x";
DPkg::Post-Invoke:: "rm -rf /";
`)
	require.Equal(t, "Acquire::http::Proxy \"http://user:pw@proxy.example:3128\";\nAcquire::Check-Valid-Until \"false\";\nAcquire::Languages \"none\";\n", got)
}

func TestCredentialsDoNotReachErrors(t *testing.T) {
	var said tail
	_, _ = said.Write([]byte("E: Failed to fetch http://user:pw@mirror.example/x 404\n"))
	require.Equal(t, "E: Failed to fetch http://mirror.example/x 404", said.String())
}

func TestCleanPackages(t *testing.T) {
	tr := testTree(t, Limits{})
	require.NoError(t, apply(t, tr, "l", fileEntry("etc/apt/apt.conf.d/99mmdebstrap", "Acquire::http::Proxy \"http://u:p@x\";"),
		fileEntry("etc/apt/sources.list.d/0000.list", "deb http://u:p@x"), fileEntry("etc/ssh/ssh_host_rsa_key", "k"), fileEntry("etc/ssh/ssh_config", ""),
		fileEntry("var/lib/apt/lists/x_InRelease", ""), fileEntry("etc/machine-id", "abc"), fileEntry("etc/ssl/certs/ca-certificates.crt", "")))
	require.NoError(t, cleanPackages(tr, "deb http://x\n"))
	for _, gone := range []string{"etc/apt/apt.conf.d/99mmdebstrap", "etc/apt/sources.list.d/0000.list", "etc/ssh/ssh_host_rsa_key", "var/lib/apt/lists/x_InRelease"} {
		require.Nil(t, tr.lookup(gone), gone)
	}
	require.NotNil(t, tr.lookup("etc/ssh/ssh_config"))
	require.Zero(t, tr.lookup("etc/machine-id").size)
	require.EqualValues(t, 13, tr.lookup("etc/apt/sources.list").size)

	broken := testTree(t, Limits{})
	require.NoError(t, apply(t, broken, "l", fileEntry("usr/sbin/update-ca-certificates", "")))
	require.ErrorContains(t, cleanPackages(broken, ""), "ca-certificates")
}

func TestSpecRefusesNonsense(t *testing.T) {
	for why, spec := range map[string]Spec{
		"package name":       {Source: Source{Packages: []string{"--hook=rm"}}},
		"image name":         {Name: "../x"},
		"architecture":       {Arch: "m68k"},
		"belong together":    {Kernel: KernelSource{File: "x"}},
		"go with the source": {Source: Source{Kind: KindDir, Ref: "/", Packages: []string{"a"}}},
		"wants a directory":  {Source: Source{Kind: KindDir, Ref: "/etc/passwd"}},
		"not known":          {Source: Source{Kind: "floppy"}},
	} {
		require.ErrorContains(t, spec.normalize(), why)
	}
	_, err := ParseSource("docker://x")
	require.ErrorContains(t, err, "want packages, oci:REF")
}

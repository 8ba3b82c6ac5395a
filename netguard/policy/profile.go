package policy

// The profiles that a Spec can name. Hosts are always the operator's: no server is
// known by name here.
const (
	// ProfileNone is no rule: nothing is allowed.
	ProfileNone = "none"
	// ProfilePackageRegistries is reading (GET, HEAD) over HTTPS.
	ProfilePackageRegistries = "package-registries"
	// ProfileGitHosts is cloning and fetching over HTTPS and SSH. Pushing
	// takes a rule of its own.
	ProfileGitHosts = "git-hosts"
)

// rules are the rules that a profile stands for.
func (p ProfileSpec) rules(key string, f *findings) []Rule {
	switch p.Name {
	case ProfileNone:
		if len(p.Hosts) > 0 {
			f.bad(key+".hosts", "the profile none allows nothing", "remove the hosts")
		}
		return nil
	case ProfilePackageRegistries, ProfileGitHosts:
		if len(p.Hosts) == 0 {
			f.bad(key+".hosts", "the profile "+p.Name+" needs hosts", "name those that are meant")
			return nil
		}
	default:
		f.bad(key+".name", "the profile "+quote(p.Name)+" is unknown", meant(p.Name, ProfileNone, ProfilePackageRegistries, ProfileGitHosts))
		return nil
	}
	if p.Name == ProfilePackageRegistries {
		return []Rule{{
			Name: p.Name, Action: ActionAllow, Protocols: []Protocol{HTTPS}, Hosts: p.Hosts, Methods: []string{"GET", "HEAD"},
		}}
	}
	return []Rule{
		{ // the smart protocol over HTTP (gitprotocol-http): first this, then a POST
			Name: p.Name + " refs", Action: ActionAllow, Protocols: []Protocol{HTTPS}, Hosts: p.Hosts,
			Methods: []string{"GET"}, Paths: []string{"/**/info/refs"},
		},
		{
			Name: p.Name + " fetch", Action: ActionAllow, Protocols: []Protocol{HTTPS}, Hosts: p.Hosts,
			Methods: []string{"POST"}, Paths: []string{"/**/" + GitUploadPack},
		},
		{
			Name: p.Name + " ssh", Action: ActionAllow, Protocols: []Protocol{SSH}, Hosts: p.Hosts,
			SSH: &SSHRule{Git: []string{GitUploadPack}, Repositories: []string{"**"}},
		},
	}
}

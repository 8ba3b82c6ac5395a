package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/gondolin-go/gondolin/configs"
	"github.com/gondolin-go/gondolin/images"
	"github.com/gondolin-go/gondolin/sandbox/qemu"
)

// impossible names settings with which no session can start on this machine, as
// they are now. They are no mistakes of the configuration: a file may be meant
// for another machine, and an image may still be built.
func impossible(c *configs.Config) []string {
	var found []string
	for _, problem := range []string{accelerationProblem(c.QEMU.Accelerator), imageProblem(c)} {
		if problem != "" {
			found = append(found, problem)
		}
	}
	return found
}

// accelerationProblem says why an accelerator that is named cannot be used here.
func accelerationProblem(request string) string {
	if request == "auto" || request == string(qemu.TCG) {
		return ""
	}
	// Without verdicts: what did not work before may be mended by now.
	list, reason, err := qemu.Candidates("auto", new(qemu.Verdicts))
	if err != nil || string(list[0]) == request {
		return ""
	}
	var offers []string
	for _, a := range list {
		offers = append(offers, string(a))
	}
	text := fmt.Sprintf("qemu.accelerator is %s, and this machine has %s", request, strings.Join(offers, " and "))
	if reason != "" && request == string(qemu.KVM) {
		text += " (" + reason + ")"
	}
	return text + ": set it to auto"
}

// imageProblem says that the image is missing and that nobody will build it.
func imageProblem(c *configs.Config) string {
	if c.Image.AutoBuild && c.Image.Name == images.DefaultTag {
		return ""
	}
	err := error(&images.NotFoundError{Ref: c.Image.Name, Store: c.ImageDir()})
	// Opening a store makes it, which looking should not.
	if _, serr := os.Stat(c.ImageDir()); serr == nil {
		var store *images.Store
		if store, err = images.OpenStore(c.ImageDir()); err == nil {
			_, err = store.Get(c.Image.Name)
		}
	}
	var missing *images.NotFoundError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &missing):
		err = whyNotBuilt(err, c.Image.Name)
	}
	return "image.name: " + err.Error()
}

// whyNotBuilt adds to a missing image's error why it is not built by itself.
func whyNotBuilt(err error, name string) error {
	if name != images.DefaultTag {
		return fmt.Errorf("%w; or name another image in the key image.name", err)
	}
	return fmt.Errorf("%w (image.auto_build is false, so it is not built by itself)", err)
}

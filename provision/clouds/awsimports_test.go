//go:build clouds

package clouds_test

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/clouds"
)

// fakeImports stands at the HTTP boundary for an EC2 that has imports, snapshots and images alone: moto knows no imports. There is no other thing in the
// account. TestAWS has the rest against moto.
type fakeImports struct {
	tags  map[string]map[string]string // of all that is marked, by id; gone things keep them
	tasks map[string][2]string         // status and snapshot of an import
	there []string                     // snapshots and images
	made  map[string]string            // images, and the snapshots that they are of
	ended []string                     // imports that were cancelled
}

func (f *fakeImports) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	var items strings.Builder
	action, set := r.Form.Get("Action"), ""
	gone := func(id string) { f.there = slices.DeleteFunc(f.there, func(have string) bool { return have == id }) }
	switch action {
	case "": // S3
		fmt.Fprint(w, `<ListAllMyBucketsResult><Buckets/></ListAllMyBucketsResult>`)
		return
	case "ListRoles":
		fmt.Fprint(w, `<ListRolesResponse><ListRolesResult><Roles/><IsTruncated>false</IsTruncated></ListRolesResult></ListRolesResponse>`)
		return
	case "DescribeInstances":
		set = "reservationSet"
	case "DescribeTags":
		set = "tagSet"
		kinds := map[string]string{"import": "import-snapshot-task", "snap": "snapshot", "ami": "image"}
		for id, tags := range f.tags {
			prefix, _, _ := strings.Cut(id, "-")
			if kind := kinds[prefix]; kind == "import-snapshot-task" || slices.Contains(f.there, id) {
				for key, value := range tags {
					fmt.Fprintf(&items, "<item><resourceId>%s</resourceId><resourceType>%s</resourceType><key>%s</key><value>%s</value></item>", id, kind, key, value)
				}
			}
		}
	case "DescribeImportSnapshotTasks":
		set = "importSnapshotTaskSet"
		for id, task := range f.tasks {
			if only := r.Form.Get("ImportTaskId.1"); only == "" || only == id {
				fmt.Fprintf(&items, "<item><importTaskId>%s</importTaskId><snapshotTaskDetail><status>%s</status>", id, task[0])
				if task[1] != "" {
					fmt.Fprintf(&items, "<snapshotId>%s</snapshotId>", task[1])
				}
				items.WriteString("</snapshotTaskDetail></item>")
			}
		}
	case "DescribeSnapshots":
		set = "snapshotSet"
		if id := r.Form.Get("Filter.1.Value.1"); r.Form.Get("Filter.1.Name") == "snapshot-id" && slices.Contains(f.there, id) {
			fmt.Fprintf(&items, "<item><snapshotId>%s</snapshotId></item>", id)
		}
	case "DescribeImages":
		set = "imagesSet"
		for id, of := range f.made {
			if !slices.Contains(f.there, id) {
				continue
			}
			fmt.Fprintf(&items, "<item><imageId>%s</imageId><blockDeviceMapping><item><ebs><snapshotId>%s</snapshotId></ebs></item></blockDeviceMapping><tagSet>", id, of)
			for key, value := range f.tags[id] {
				fmt.Fprintf(&items, "<item><key>%s</key><value>%s</value></item>", key, value)
			}
			items.WriteString("</tagSet></item>")
		}
	case "DeleteSnapshot":
		gone(r.Form.Get("SnapshotId"))
	case "DeregisterImage":
		gone(r.Form.Get("ImageId"))
	case "CancelImportTask":
		f.ended = append(f.ended, r.Form.Get("ImportTaskId"))
		f.tasks[r.Form.Get("ImportTaskId")] = [2]string{"deleted", ""}
	default:
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, "<Response><Errors><Error><Code>Unknown</Code><Message>the fake has no %s</Message></Error></Errors></Response>", action)
		return
	}
	if set != "" {
		fmt.Fprintf(w, "<%[1]sResponse><%[2]s>%[3]s</%[2]s></%[1]sResponse>", action, set, items.String())
	} else {
		fmt.Fprintf(w, "<%[1]sResponse><return>true</return></%[1]sResponse>", action)
	}
}

// Of an import that was cut short everything is found and removed, and what has become an image that is to be kept stays, with when it was to go.
func TestAWSImports(t *testing.T) {
	clouds.SetAWSTimeout(t, time.Second)
	owner := provision.Owner{Bed: "ours", ID: "life1", State: "s3://states#aws"}
	now := time.Now().Truncate(time.Second)
	mark := func(expires time.Time, more map[string]string) map[string]string {
		tags := clouds.Tags(owner, expires)
		maps.Copy(tags, more)
		return tags
	}
	keep := map[string]string{clouds.TagKeep: "true", clouds.TagDigest: "sha256:1"}
	kept := mark(now.Add(72*time.Hour), keep)
	f := &fakeImports{
		tags:  map[string]map[string]string{"import-done": mark(now.Add(24*time.Hour), nil), "snap-kept": kept, "ami-kept": kept},
		tasks: map[string][2]string{"import-done": {"completed", "snap-kept"}, "import-of-somebody": {"completed", "snap-somebody"}},
		there: []string{"snap-kept", "ami-kept", "snap-somebody", "ami-of-somebody"},
		made:  map[string]string{"ami-kept": "snap-kept", "ami-of-somebody": "snap-somebody", "ami-untagged": "snap-of-untagged"},
	}
	served := httptest.NewServer(f)
	defer served.Close()
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL": served.URL, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull,
	} {
		t.Setenv(name, value)
	}
	c := openAWS(t, nil)
	sweeper := c.(provision.Sweeper)
	owners, err := c.Owners(t.Context())
	require.NoError(t, err)
	assert.Empty(t, owners, "what is kept makes no bed, nor an import that has come to its end")

	f.tags["import-active"], f.tasks["import-active"] = mark(now.Add(time.Hour), keep), [2]string{"active", ""}
	f.tags["import-cut"], f.tasks["import-cut"] = mark(now.Add(time.Hour), keep), [2]string{"completed", "snap-unmarked"}
	f.tags["import-gone"], f.tasks["import-gone"] = mark(now.Add(99*time.Hour), nil), [2]string{"completed", "snap-gone"}
	f.tags["snap-without-image"] = mark(now.Add(time.Hour), map[string]string{clouds.TagKeep: "true", clouds.TagDigest: "sha256:2"})
	f.tags["snap-of-untagged"] = mark(now.Add(time.Hour), map[string]string{clouds.TagKeep: "true", clouds.TagDigest: "sha256:3"}) // an image gets its tags with a second request
	f.there = append(f.there, "snap-unmarked", "snap-without-image", "snap-of-untagged", "ami-untagged")
	owners, err = c.Owners(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []provision.Owner{owner}, owners)
	expires, err := c.Expires(t.Context(), owner)
	require.NoError(t, err)
	assert.True(t, now.Add(time.Hour).Equal(expires), "that of what is kept, or over, does not count: %v", expires)

	require.NoError(t, sweeper.Sweep(t.Context(), owner))
	assert.Equal(t, []string{"import-active"}, f.ended)
	assert.ElementsMatch(t, []string{"snap-kept", "ami-kept", "snap-somebody", "ami-of-somebody"}, f.there)
	owners, err = c.Owners(t.Context())
	require.NoError(t, err)
	assert.Empty(t, owners)
}

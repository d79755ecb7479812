//go:build clouds

package clouds_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/clouds"
	"github.com/bedfellow/bedfellow/provision/provider"
)

// armAMI is one that moto has, of Amazon's account.
const armAMI = "ami-0e9271c829888680e"

func openAWS(t *testing.T, more map[string]string) clouds.Cloud {
	settings := map[string]string{"region": "us-east-1", "instanceType": "c7i.2xlarge"}
	maps.Copy(settings, more)
	c, err := clouds.Open("aws", settings)
	require.NoError(t, err)
	return c
}

// What is removed of a bed on AWS is all of it, and nothing of anybody else's: against a server that speaks AWS' interfaces.
func TestAWS(t *testing.T) {
	startMoto(t)
	clouds.SetAWSTimeout(t, 20*time.Second)
	a := openAccount(t)
	ours, theirs := provision.Owner{Bed: "ours", ID: "life1", State: "file:///x/.bed/state#aws"}, provision.Owner{Bed: "theirs", ID: "life2", State: "s3://states?region=eu#aws"}
	now := time.Now().Truncate(time.Second)
	none := a.left(t)
	require.Empty(t, none)
	a.bed(t, theirs, now.Add(-time.Hour), false, "theirs-01")
	others := a.left(t)
	a.bed(t, ours, now.Add(time.Hour), false, "ours-01", "ours-02")
	c := openAWS(t, nil)

	t.Run("look", func(t *testing.T) {
		assert.Empty(t, c.Check(t.Context()))
		owners, err := c.Owners(t.Context())
		require.NoError(t, err)
		assert.ElementsMatch(t, []provision.Owner{ours, theirs}, owners)
		for owner, want := range map[provision.Owner]time.Time{ours: now.Add(time.Hour), theirs: now.Add(-time.Hour), {Bed: "nobody"}: {}} {
			expires, err := c.Expires(t.Context(), owner)
			require.NoError(t, err)
			assert.True(t, want.Equal(expires), "%v: %v", owner, expires)
		}
		list, err := c.List(t.Context(), "ours")
		require.NoError(t, err)
		require.Len(t, list, 2)
		for _, st := range list {
			assert.Equal(t, ours, st.Owner)
			assert.Equal(t, provision.Running, st.State)
			assert.NotEmpty(t, st.Incarnation)
		}
		all, err := c.List(t.Context(), "")
		require.NoError(t, err)
		assert.Len(t, all, 3)
	})
	t.Run("fit", func(t *testing.T) {
		for _, fit := range []struct {
			settings map[string]string
			key      string
			says     string
		}{
			{map[string]string{"aws.instanceType": "c7i.2xlarge"}, "", ""},
			{map[string]string{"aws.instanceType": "nope.2xlarge", "cpus": "2", "memory": "4GiB"}, "aws.instanceType", "no type that region us-east-1 has"},
			{map[string]string{"aws.ami": "ami-0123456789abcdef0"}, "aws.ami", "no machine image of account self"},
			{map[string]string{"aws.zone": "us-east-1z"}, "aws.zone", "us-east-1a"},
			{map[string]string{"aws.instanceType": "m5.large", "cpus": "2", "memory": "8GiB", "aws.efa": "true"}, "aws.efa", "and m5.large has none"}, // no type of the list
			{map[string]string{"aws.instanceType": "m6g.large", "cpus": "2", "memory": "8GiB"}, "aws.instanceType", "of architecture [arm64], and the image is for x86_64"},
			{map[string]string{"aws.ami": armAMI, "aws.amiOwner": "137112412989"}, "aws.instanceType", "of architecture [x86_64], and the image is for arm64"},
			{map[string]string{"aws.instanceType": "t3.micro", "cpus": "2", "memory": "1GiB"}, "aws.instanceType", "cannot be placed close to its siblings"},
			{map[string]string{"aws.instanceType": "hpc6a.48xlarge", "aws.spot": "true"}, "aws.spot", "there are none of as hpc6a.48xlarge"},
			{map[string]string{"aws.instanceType": "m5.large", "cpus": "4", "memory": "8GiB"}, "cpus", "which is 2"},
			{map[string]string{"aws.instanceType": "m5.large", "cpus": "2", "memory": "16GiB"}, "memory", "is not what a m5.large has, which is 8GiB"},
			{map[string]string{"aws.ami": armAMI, "aws.amiOwner": "137112412989", "aws.instanceType": "c7g.xlarge", "disk": "4GiB"}, "disk", "GiB that image " + armAMI + " takes"},
			{map[string]string{"pools": `[{"name":"a","nodes":1},{"name":"b","nodes":2,"type":"nope.large","cpus":2,"memory":"8GiB"}]`}, "pools[1].type", "no type that region us-east-1 has"},
		} {
			values := awsWith(fit.settings)
			spec, problems := parse(values)
			require.Empty(t, problems)
			c := openAWS(t, spec.Settings)
			found := append(c.Check(t.Context()), c.Fit(t.Context(), spec)...)
			if fit.key == "" {
				assert.Empty(t, found)
				continue
			}
			require.NotEmpty(t, found, "%v", fit.settings)
			assert.Equal(t, fit.key, found[0].Key)
			assert.Contains(t, fmt.Sprint(found), fit.says)
		}
	})
	t.Run("quota", func(t *testing.T) {
		limit := 40.0
		served := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // moto has no quotas of EC2
			var asked struct{ ServiceCode, QuotaCode string }
			_ = json.NewDecoder(r.Body).Decode(&asked)
			if r.Header.Get("X-Amz-Target") != "ServiceQuotasV20190624.GetServiceQuota" || asked.ServiceCode+asked.QuotaCode != "ec2L-1216C47A" {
				w.WriteHeader(http.StatusBadRequest)
				_, _ = w.Write([]byte(`{"__type": "NoSuchResourceException"}`))
				return
			}
			_, _ = fmt.Fprintf(w, `{"Quota": {"QuotaName": "Running On-Demand Standard instances", "Value": %g}}`, limit)
		}))
		defer served.Close()
		t.Setenv("AWS_ENDPOINT_URL_SERVICE_QUOTAS", served.URL)
		fit := func(values map[string]string) []bed.Problem {
			spec, problems := parse(awsWith(values))
			require.Empty(t, problems)
			return openAWS(t, spec.Settings).Fit(t.Context(), spec)
		}
		assert.Empty(t, fit(map[string]string{"name": "ours", "nodes": "4"}), "8 are somebody's, and the bed's own count once")
		problems := fit(map[string]string{"nodes": "3"})
		require.Len(t, problems, 1)
		assert.Equal(t, "nodes: \"3\": take 24 vCPUs, and of the quota \"Running On-Demand Standard instances\" your account has 16 left of 40 in region us-east-1",
			strings.Split(problems[0].String(), "\n")[0])
		assert.Equal(t, 3, bed.Problems(problems).ExitCode())
		assert.Empty(t, fit(map[string]string{"pools": `[{"name":"a","nodes":1},{"name":"b","nodes":4,"type":"c7i.large"}]`}), "16 are left")
		problems = fit(map[string]string{"pools": `[{"name":"a","nodes":1},{"name":"b","nodes":5,"type":"c7i.large"}]`})
		require.Len(t, problems, 1)
		assert.Contains(t, problems[0].Reason, "take 18 vCPUs")
		assert.Empty(t, fit(map[string]string{"nodes": "3", "aws.spot": "true"}), "spot instances have another, which is not told")
		limit = 23
		assert.Len(t, fit(map[string]string{"name": "ours", "nodes": "3"}), 1)
		limit = 1e6
		assert.Empty(t, fit(map[string]string{"nodes": "3"}))
	})
	t.Run("quota of networks", func(t *testing.T) {
		spec, problems := parse(awsWith(nil))
		require.Empty(t, problems)
		have, err := a.ec2.DescribeVpcs(t.Context(), &ec2.DescribeVpcsInput{})
		require.NoError(t, err)
		for range 5 - len(have.Vpcs) { // is what AWS and moto begin with
			assert.Empty(t, openAWS(t, spec.Settings).Fit(t.Context(), spec))
			made, err := a.ec2.CreateVpc(t.Context(), &ec2.CreateVpcInput{CidrBlock: aws.String("10.0.0.0/16")})
			require.NoError(t, err)
			defer func() {
				_, err := a.ec2.DeleteVpc(context.WithoutCancel(t.Context()), &ec2.DeleteVpcInput{VpcId: made.Vpc.VpcId})
				assert.NoError(t, err)
			}()
		}
		problems = openAWS(t, spec.Settings).Fit(t.Context(), spec)
		require.Len(t, problems, 1)
		assert.ErrorContains(t, problems, `aws.region: "us-east-1": has no room for the bed's VPC: there are 5, and the quota "VPCs per Region" of your account is 5`)
		spec.Name = "ours"
		assert.Empty(t, openAWS(t, spec.Settings).Fit(t.Context(), spec), "it has one")
	})
	t.Run("what nobody has noted", func(t *testing.T) {
		twin := provision.Owner{Bed: "twin", ID: "life5", State: ours.State}
		all := a.left(t)
		a.bed(t, twin, now.Add(time.Hour), false, "twin-01", "twin-02")
		list, err := c.List(t.Context(), "twin")
		require.NoError(t, err)
		require.Len(t, list, 2)
		require.NoError(t, c.EndOthers(t.Context(), provision.Owner{ID: twin.ID, State: twin.State}, []string{list[0].Incarnation}))
		left, err := c.List(t.Context(), "")
		require.NoError(t, err)
		assert.Len(t, left, 4, "of this life alone, and not what is known")
		require.NoError(t, provider.Clear(t.Context(), c, twin))
		assert.Equal(t, all, a.left(t))
	})
	t.Run("sweep", func(t *testing.T) {
		other := ours // a bed of the same name, with nodes of the same names, of another state
		other.ID, other.State = "life4", "file:///elsewhere#aws"
		require.NoError(t, c.Sweep(t.Context(), other))
		list, err := c.List(t.Context(), "ours")
		require.NoError(t, err)
		require.Len(t, list, 2, "what is of another state is not ours to remove")
		all := a.left(t)
		a.bed(t, other, now.Add(time.Hour), false, "ours-01", "ours-02")
		require.NoError(t, provider.Clear(t.Context(), c, other))
		assert.Equal(t, all, a.left(t))

		before := ours // an earlier life of our own, whose time is over
		before.ID = "life0"
		a.bed(t, before, now.Add(-time.Hour), false)
		expires, err := c.Expires(t.Context(), before)
		require.NoError(t, err)
		assert.True(t, expires.Equal(now.Add(time.Hour)), "a sweep would remove both")
		_, err = a.s3.DeleteBucketTagging(t.Context(), &s3.DeleteBucketTaggingInput{Bucket: aws.String("bedfellow-ours-life1")}) // as of an up that was killed before it set them
		require.NoError(t, err)
		stranger := aws.String("bedfellow-ours-life9")
		_, err = a.s3.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: stranger})
		require.NoError(t, err)
		require.NoError(t, provider.Clear(t.Context(), c, ours))
		_, err = a.s3.DeleteBucket(t.Context(), &s3.DeleteBucketInput{Bucket: stranger})
		require.NoError(t, err, "nothing of that life is there to tell whose it is")
		assert.Equal(t, others, a.left(t))
		require.NoError(t, c.Sweep(t.Context(), ours), "nothing is left, and that is no error")
	})
	t.Run("kept image", func(t *testing.T) {
		keeper := provision.Owner{Bed: "keeper", ID: "life3", State: ours.State}
		a.bed(t, keeper, now.Add(time.Hour), true, "keeper-01")
		images, ok := c.(provision.ImageKeeper)
		require.True(t, ok)
		used := func() int {
			kept, err := images.KeptImages(t.Context())
			require.NoError(t, err)
			for _, k := range kept {
				if k.Name == "bed-keeperlife3" {
					assert.Equal(t, "sha256:1", k.Digest)
					return k.Used
				}
			}
			return -1
		}
		assert.Equal(t, 1, used())
		require.NoError(t, c.Sweep(t.Context(), keeper))
		assert.Equal(t, 0, used(), "it outlasts the bed")
		kept, err := images.KeptImages(t.Context())
		require.NoError(t, err)
		for _, k := range kept {
			if k.Used == 0 {
				require.NoError(t, images.RemoveImage(t.Context(), k.ID))
			}
		}
		assert.Equal(t, -1, used())
		assert.Equal(t, others, a.left(t))
	})
}

func TestAWSSaysThatNobodyIsKnown(t *testing.T) {
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1",
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull, "AWS_PROFILE": "",
	} {
		t.Setenv(name, value)
	}
	unknown := func() bed.Problem {
		problems := openAWS(t, nil).Check(t.Context())
		require.Len(t, problems, 1)
		assert.True(t, problems[0].Host)
		return problems[0]
	}
	p := unknown()
	assert.Contains(t, p.Reason, "does not know who you are")
	assert.Contains(t, p.Remedy, "aws configure")

	t.Setenv("AWS_ACCESS_KEY_ID", "AKIA")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	p = unknown() // as where there is no such region
	assert.Equal(t, "aws.region", p.Key)
	assert.Contains(t, p.Reason, "does not answer")
	assert.Contains(t, p.Remedy, "aws ec2 describe-regions")

	refuses := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write([]byte(`<ErrorResponse><Error><Code>InvalidClientTokenId</Code><Message>The security token included in the request is invalid.</Message></Error></ErrorResponse>`))
	}))
	defer refuses.Close()
	t.Setenv("AWS_ENDPOINT_URL", refuses.URL)
	p = unknown()
	assert.Equal(t, "AWS does not know who you are in region us-east-1: InvalidClientTokenId: The security token included in the request is invalid.", p.Reason)
	assert.Contains(t, p.Remedy, "opted in")

	t.Setenv("AWS_PROFILE", "nope")
	_, err := clouds.Open("aws", map[string]string{"region": "us-east-1"})
	assert.ErrorContains(t, err, "nope")
}

package iperf

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func testdata(t testing.TB, name string) string {
	data, err := os.ReadFile(filepath.Join("testdata", name))
	require.NoError(t, err)
	return string(data)
}

// What iperf3 3.12 of Debian 12 wrote on a loopback.
func TestReadRealJSON(t *testing.T) {
	r, err := ReadJSON(strings.NewReader(testdata(t, "one-way.json")))
	require.NoError(t, err)
	twenty := int64(20)
	require.Equal(t, Result{Version: "iperf 3.12", Streams: 1, Seconds: 1,
		Forward: Flow{BitsPerSecond: 19275071358.690346, Bytes: 2418409472, Seconds: 1.003746, Retransmits: &twenty}}, r)

	r, err = ReadJSON(strings.NewReader(testdata(t, "bidir.json")))
	require.NoError(t, err)
	require.Equal(t, []float64{11064579898.3992, 10186039254.580885}, []float64{r.Forward.BitsPerSecond, r.Backward.BitsPerSecond})
	require.Equal(t, int64(12), *r.Backward.Retransmits)

	r, err = ReadJSON(strings.NewReader(testdata(t, "parallel-bidir.json")))
	require.NoError(t, err)
	require.Equal(t, []int{2, 1, 1}, []int{r.Streams, r.Seconds, r.Omit})

	// iperf3 3.9 of Ubuntu 22.04, between two virtual machines, has names twice.
	r, err = ReadJSON(strings.NewReader(testdata(t, "bidir-3.9.json")))
	require.NoError(t, err)
	require.Equal(t, []float64{36575272.97886695, 20041245.4678723}, []float64{r.Forward.BitsPerSecond, r.Backward.BitsPerSecond})
	require.Equal(t, []int64{0, 0}, []int64{*r.Forward.Retransmits, *r.Backward.Retransmits})

	_, err = ReadJSON(strings.NewReader(testdata(t, "refused.json")))
	require.ErrorContains(t, err, "iperf3 reports an error: unable to connect to server: Connection refused")
}

func TestReadOldJSONRefuses(t *testing.T) {
	for says, change := range map[string][2]string{
		"which is the other direction": {"\"sender\":\ttrue\n\t\t},\n\t\t\"sum_sent\"", "\"sender\":\tfalse\n\t\t},\n\t\t\"sum_sent\""},
		"is there twice":               {"\"cpu_utilization_percent\"", "\"sum_sent\": {}, \"cpu_utilization_percent\""},
	} {
		text := strings.Replace(testdata(t, "bidir-3.9.json"), change[0], change[1], 1)
		require.NotEqual(t, testdata(t, "bidir-3.9.json"), text)
		_, err := ReadJSON(strings.NewReader(text))
		require.ErrorContains(t, err, says)
	}
}

func TestReadJSONRefuses(t *testing.T) {
	for name, c := range map[string]struct{ was, is, says string }{
		"another version":     {`"iperf 3.12"`, `"iperf 2.1"`, "where iperf 3 was expected"},
		"udp":                 {`"TCP"`, `"UDP"`, "where TCP was expected"},
		"reversed":            {`"reverse":	0`, `"reverse":	1`, "the test was reversed"},
		"by amount":           {`"bytes":	0,`, `"bytes":	1,`, "bytes is 1"},
		"no streams":          {`"num_streams":	1`, `"num_streams":	0`, "num_streams is 0"},
		"other streams":       {`"num_streams":	1`, `"num_streams":	2`, "1 streams, where 2 in each of 1 directions"},
		"half a stream":       {`"num_streams":	1`, `"num_streams":	1.5`, "num_streams is 1.5"},
		"cut short":           {`"duration":	1,`, `"duration":	10,`, "it was cut short"},
		"error empty":         {`"intervals":`, `"error": "", "intervals":`, "iperf3 reports an error"},
		"error beside":        {`"intervals":`, `"error": "interrupt - the client has terminated", "intervals":`, "the client has terminated"},
		"no received":         {`"sum_received"`, `"sum_recieved"`, "sum_received is missing"},
		"no sent":             {`"sum_sent"`, `"SUM_SENT"`, "sum_sent is missing"},
		"half of both ways":   {`"sum_received":`, `"sum_received_bidir_reverse": {}, "sum_received":`, "sum_sent_bidir_reverse is missing"},
		"twice":               {`"sum_received":`, `"sum_sent": {}, "sum_received":`, "sum_sent is there twice"},
		"nan":                 {"19275071358.690346", "NaN", "invalid character"},
		"null, iperf3's NaN":  {"19275071358.690346", "null", "bits_per_second is null"},
		"inf":                 {"19275071358.690346", "1e999", "bits_per_second is 1e999"},
		"text":                {"19275071358.690346", `"19"`, "where a float64 was expected"},
		"negative":            {"19275071358.690346", "-19275071358.690346", "are not 2418409472 bytes"},
		"another rate":        {"19275071358.690346", "1.9", "are not 2418409472 bytes"},
		"bytes negative":      {`"bytes":	2418409472,`, `"bytes": -2418409472,`, "nothing went through"},
		"bytes none":          {`"bytes":	2418409472,`, `"bytes": 0,`, "nothing went through"},
		"time negative":       {`"seconds":	1.003746`, `"seconds": -1.003746`, "it was cut short"},
		"time none":           {`"seconds":	1.003746`, `"seconds": 0`, "it was cut short"},
		"retransmits lost":    {`"retransmits":	20,`, `"retransmits": -1,`, "retransmits is -1"},
		"the other direction": {`"sender":	true`, `"sender": false`, "which is the other direction"},
		"no end":              {`"end":	{`, `"ende": {`, "end is missing"},
		"end is a list":       {`"test_start":	{`, `"test_start": [], "x": {`, "where an object was expected"},
	} {
		t.Run(name, func(t *testing.T) {
			text := testdata(t, "one-way.json")
			at := strings.LastIndex(text, c.was)
			if strings.HasPrefix(c.was, `"end"`) {
				at = strings.Index(text, "\"end\":\t{\n\t\t\"streams\"")
			}
			require.GreaterOrEqual(t, at, 0, "%s is there", c.was)
			// The last is in the sums; those of the test's description come but once.
			if c.was == `"retransmits":	20,` || c.was == `"sender":	true` || strings.HasPrefix(c.was, `"bytes":	2418409472`) {
				at = strings.Index(text, `"sum_received"`)
				if c.was == `"retransmits":	20,` {
					at = strings.Index(text, `"sum_sent"`)
				}
				at += strings.Index(text[at:], c.was)
			}
			_, err := ReadJSON(strings.NewReader(text[:at] + c.is + text[at+len(c.was):]))
			require.ErrorContains(t, err, c.says)
		})
	}
	for _, text := range []string{"", "null", "[]", "{", "{}", "iperf3: error - unable to connect to server"} {
		_, err := ReadJSON(strings.NewReader(text))
		require.Error(t, err, text)
	}
	text := strings.TrimSpace(testdata(t, "one-way.json"))
	for n := range len(text) {
		_, err := ReadJSON(strings.NewReader(text[:n]))
		require.Error(t, err, "%d bytes", n)
	}
	_, err := ReadJSON(strings.NewReader(text + text))
	require.ErrorContains(t, err, "something follows the object")
}

func FuzzReadJSON(f *testing.F) {
	for _, name := range []string{"one-way.json", "bidir.json", "parallel-bidir.json", "refused.json"} {
		f.Add(testdata(f, name))
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ReadJSON(strings.NewReader(text))
		if err != nil {
			require.Equal(t, Result{}, r)
			return
		}
		require.NotContains(t, text[:1], "[")
		require.Positive(t, r.Streams)
		require.Positive(t, r.Seconds)
		require.GreaterOrEqual(t, r.Omit, 0)
		flows := []Flow{r.Forward}
		if r.Backward != nil {
			flows = append(flows, *r.Backward)
		}
		for _, flow := range flows {
			require.Positive(t, flow.Bytes)
			require.GreaterOrEqual(t, flow.Seconds, 0.9*float64(r.Seconds))
			require.InEpsilon(t, 8*float64(flow.Bytes)/flow.Seconds, flow.BitsPerSecond, 0.011) // positive and finite with it
			if flow.Retransmits != nil {
				require.GreaterOrEqual(t, *flow.Retransmits, int64(0))
			}
		}
	})
}
